#include "machine/volume_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/uring_loop.h"
#include "machine/fake_volume.h"

namespace berth::nbd {
static bool operator==(const StatusExtent& a, const StatusExtent& b) {
  return a.length == b.length && a.flags == b.flags;
}
static void PrintTo(const StatusExtent& extent, std::ostream* out) {
  *out << "{" << extent.length << ", " << extent.flags << "}";
}
}  // namespace berth::nbd

namespace berth::machine {
namespace {

using nbd::StatusExtent;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t block = FakeVolume::block_size;
constexpr std::uint64_t size = 64 * block;

class VolumeExportTest : public testing::Test {
 protected:
  template <typename T>
  T run(Task<T> task) {
    return loop_->run_until_complete(std::move(task));
  }
  VolumeExports exports(VolumeExports::Options options = {.name = "disk"}) {
    return {volume_, readers_, std::move(options)};
  }
  std::shared_ptr<nbd::Export> open(const std::string& name) {
    auto directory = exports();
    return MUST(run(directory.find(name)));
  }
  void write(std::uint64_t first_block, std::uint64_t count, std::byte value) {
    const std::vector<std::byte> data(count * block, value);
    MUST(run(volume_.write(first_block * block, data)));
  }
  void cut(const std::string& checkpoint, const std::string& refpoint) {
    MUST(run(volume_.cut({.checkpoint = checkpoint, .refpoint = refpoint})));
  }
  std::vector<StatusExtent> status(nbd::Export& of, const std::string& context,
                                   std::uint64_t offset = 0, std::uint64_t length = size,
                                   std::size_t extents_max = 100) {
    return MUST(run(of.block_status(context, offset, length, extents_max)));
  }

  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  FakeVolume volume_{size};
  std::shared_ptr<CheckpointReaders> readers_ = std::make_shared<CheckpointReaders>();
};

TEST_F(VolumeExportTest, TheLiveDiskReadsAndWritesTheVolume) {
  const auto disk = open("disk");
  EXPECT_EQ(disk->info().size, size);
  EXPECT_FALSE(disk->info().read_only);
  std::vector<std::byte> data(100, std::byte{7});
  ASSERT_TRUE(run(disk->write(50, data, false)));
  EXPECT_EQ(volume_.flushes, 0U);
  std::vector<std::byte> back(100);
  ASSERT_TRUE(run(disk->read(50, back)));
  EXPECT_EQ(back, data);
  ASSERT_TRUE(run(disk->flush()));
  EXPECT_EQ(volume_.flushes, 1U);
}

TEST_F(VolumeExportTest, ForcedUnitAccessFlushesBeforeItIsAnswered) {
  const auto disk = open("disk");
  const std::vector<std::byte> data(block, std::byte{7});
  ASSERT_TRUE(run(disk->write(0, data, true)));
  ASSERT_TRUE(run(disk->discard(0, block, true)));
  ASSERT_TRUE(run(disk->zero(0, block, {.force_unit_access = true})));
  EXPECT_EQ(volume_.flushes, 3U);
}

TEST_F(VolumeExportTest, FastZeroIsPassedOn) {
  const auto disk = open("disk");
  const auto refused = run(disk->zero(1, 10, {.fast_only = true}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::unsupported);
}

TEST_F(VolumeExportTest, AReadOnlyLiveDiskRefusesEveryChange) {
  auto directory = exports({.name = "disk", .read_only = true});
  const auto disk = MUST(run(directory.find("")));
  EXPECT_TRUE(disk->info().read_only);
  const std::vector<std::byte> data(10);
  EXPECT_EQ(run(disk->write(0, data, false)).error().kind(), ErrorKind::read_only);
  EXPECT_EQ(run(disk->write(0, data, true)).error().kind(), ErrorKind::read_only);
  EXPECT_EQ(run(disk->discard(0, 10, false)).error().kind(), ErrorKind::read_only);
  EXPECT_EQ(run(disk->zero(0, 10, {})).error().kind(), ErrorKind::read_only);
}

TEST_F(VolumeExportTest, ACheckpointServesItsBytesAndRefusesChanges) {
  write(0, 1, std::byte{1});
  cut("monday", "");
  write(0, 1, std::byte{2});
  const auto checkpoint = open("disk@monday");
  EXPECT_TRUE(checkpoint->info().read_only);
  std::vector<std::byte> back(block);
  ASSERT_TRUE(run(checkpoint->read(0, back)));
  EXPECT_EQ(back[0], std::byte{1});
  EXPECT_EQ(run(checkpoint->write(0, back, false)).error().kind(), ErrorKind::read_only);
}

TEST_F(VolumeExportTest, AnOpenCheckpointIsLentUntilItsExportGoes) {
  cut("monday", "");
  auto first = open("disk@monday");
  auto second = open("disk@monday");
  EXPECT_EQ(readers_->at("monday"), 2U);
  EXPECT_EQ(run(volume_.release_checkpoint("monday")).error().kind(), ErrorKind::in_use);
  first.reset();
  second.reset();
  EXPECT_THAT(*readers_, IsEmpty());
  EXPECT_TRUE(run(volume_.release_checkpoint("monday")));
}

TEST_F(VolumeExportTest, NamesThatAreNotThereAreNotFound) {
  auto directory = exports();
  for (const char* name : {"other", "disk@", "disk@none", "diskx@a", "@"}) {
    const auto found = run(directory.find(name));
    ASSERT_FALSE(found) << name;
    EXPECT_EQ(found.error().kind(), ErrorKind::not_found) << name;
  }
}

TEST_F(VolumeExportTest, TheListHasTheDiskAndItsCheckpoints) {
  cut("monday", "");
  cut("tuesday", "");
  const nbd::ListedExport monday{"disk@monday", "the checkpoint 'monday'"};
  const nbd::ListedExport tuesday{"disk@tuesday", "the checkpoint 'tuesday'"};
  EXPECT_THAT(exports().list(),
              ElementsAre(nbd::ListedExport{"disk", "the live disk"}, monday, tuesday));
  EXPECT_THAT(exports({.name = "disk", .checkpoints_only = true}).list(),
              ElementsAre(monday, tuesday));
}

TEST_F(VolumeExportTest, TheEmptyNameIsTheListenersDefault) {
  cut("monday", "");
  auto directory = exports({.name = "disk", .default_export = "disk@monday"});
  EXPECT_EQ(MUST(run(directory.find("")))->info().name, "disk@monday");
  auto checkpoints = exports({.name = "disk", .checkpoints_only = true});
  EXPECT_FALSE(run(checkpoints.find("disk")));
  EXPECT_FALSE(run(checkpoints.find("")));
}

TEST_F(VolumeExportTest, AllocationBecomesHolesAndZeros) {
  write(2, 2, std::byte{1});
  const auto disk = open("disk");
  EXPECT_THAT(status(*disk, "base:allocation"),
              ElementsAre(StatusExtent{2 * block, 3}, StatusExtent{2 * block, 0},
                          StatusExtent{60 * block, 3}));
}

TEST_F(VolumeExportTest, EveryReferencePointIsAContextTwice) {
  cut("", "r1");
  cut("monday", "r2");
  cut("", "r3");
  EXPECT_THAT(open("disk")->info().contexts,
              ElementsAre("berth:changed:r1", "qemu:dirty-bitmap:r1", "berth:changed:r2",
                          "qemu:dirty-bitmap:r2", "berth:changed:r3", "qemu:dirty-bitmap:r3"));
  EXPECT_THAT(open("disk@monday")->info().contexts,
              ElementsAre("berth:changed:r1", "qemu:dirty-bitmap:r1", "berth:changed:r2",
                          "qemu:dirty-bitmap:r2"));
}

TEST_F(VolumeExportTest, ChangesBecomeRunsWithoutGaps) {
  cut("", "r");
  write(1, 1, std::byte{1});
  write(4, 2, std::byte{1});
  const auto disk = open("disk");
  for (const char* context : {"berth:changed:r", "qemu:dirty-bitmap:r"}) {
    EXPECT_THAT(
        status(*disk, context),
        ElementsAre(StatusExtent{block, 0}, StatusExtent{block, 1}, StatusExtent{2 * block, 0},
                    StatusExtent{2 * block, 1}, StatusExtent{58 * block, 0}));
  }
  EXPECT_THAT(status(*disk, "berth:changed:r", block + 10, 100), ElementsAre(StatusExtent{100, 1}));
  EXPECT_THAT(status(*disk, "berth:changed:r", 10, 100), ElementsAre(StatusExtent{100, 0}));
}

TEST_F(VolumeExportTest, ChangesStopAtTheLimitOfRuns) {
  cut("", "r");
  for (std::uint64_t i = 1; i < 64; i += 2) write(i, 1, std::byte{1});
  const auto disk = open("disk");
  for (const std::size_t extents_max : {1U, 2U, 3U, 7U}) {
    EXPECT_EQ(status(*disk, "berth:changed:r", 0, size, extents_max).size(), extents_max);
  }
  // Asking on from where each answer ends covers everything.
  std::uint64_t offset = 0;
  std::uint64_t changed = 0;
  while (offset < size) {
    for (const auto& run : status(*disk, "berth:changed:r", offset, size - offset, 3)) {
      changed += run.flags * run.length;
      offset += run.length;
    }
  }
  EXPECT_EQ(offset, size);
  EXPECT_EQ(changed, 32 * block);
}

TEST_F(VolumeExportTest, ChangesOfACheckpointEndAtIt) {
  cut("", "r");
  write(0, 1, std::byte{1});
  cut("monday", "");
  write(5, 1, std::byte{1});
  EXPECT_THAT(status(*open("disk@monday"), "berth:changed:r"),
              ElementsAre(StatusExtent{block, 1}, StatusExtent{63 * block, 0}));
}

TEST_F(VolumeExportTest, AnUnknownContextIsRefused) {
  const auto disk = open("disk");
  EXPECT_EQ(run(disk->block_status("berth:changed:none", 0, size, 10)).error().kind(),
            ErrorKind::full_backup_required);
  EXPECT_EQ(run(disk->block_status("other:context", 0, size, 10)).error().kind(),
            ErrorKind::invalid_argument);
  EXPECT_EQ(run(disk->block_status("berth:changed:", 0, size, 10)).error().kind(),
            ErrorKind::invalid_argument);
}

TEST(StatusOfChanges, APageThatDoesNotFitTheRangeIsCorrupt) {
  const disk::Extent range{100, 100};
  EXPECT_FALSE(status_of_changes({.extents = {{50, 10}}}, range, 10));
  EXPECT_FALSE(status_of_changes({.extents = {{190, 20}}}, range, 10));
  EXPECT_FALSE(status_of_changes({.extents = {{150, 10}, {140, 5}}}, range, 10));
  EXPECT_FALSE(status_of_changes({.extents = {{150, UINT64_MAX}}}, range, 10));
  EXPECT_FALSE(status_of_changes({.next_offset = 100, .complete = false}, range, 10));
}

TEST(StatusOfChanges, APageThatEndsEarlySaysNothingOfTheRest) {
  const auto status = status_of_changes(
      {.extents = {{110, 10}}, .next_offset = 130, .complete = false}, {100, 100}, 10);
  ASSERT_TRUE(status);
  EXPECT_THAT(*status, ElementsAre(StatusExtent{10, 0}, StatusExtent{10, 1}, StatusExtent{10, 0}));
}

}  // namespace
}  // namespace berth::machine
