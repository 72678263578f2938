// Invariants: whatever is parked, how often and whatever goes wrong, the process sees the bytes
// that it has written; a template stays as it is; a page file has exactly what was private.
#include "memory/parking.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <random>

#include <sys/mount.h>
#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/dirty_scan.h"
#include "memory/memory_object.h"
#include "memory/page_file.h"
#include "memory/preload.h"
#include "memory/test_support.h"

namespace berth::memory {
namespace {

using testing::ElementsAre;

constexpr std::uint64_t granule = 64 * KiB;

std::uint64_t allocated(const std::string& path) {
  struct stat status{};
  CHECK(::stat(path.c_str(), &status) == 0);
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

enum class Kind : std::uint8_t { clone, own };

class ParkingTest : public testing::TestWithParam<Kind> {
 protected:
  static constexpr std::uint64_t size = 8 * MiB;

  ParkingTest() {
    if (is_clone()) {
      // Half of it, in pieces that begin and end anywhere.
      for (std::uint64_t at = 0; at + 12 * page <= size; at += 24 * page)
        write_at(file_, at, std::string(12 * page, static_cast<char>('a' + at / page % 26)));
      expected_ = template_ = read_at(file_, 0, size);
      MUST(seal_memory_object(file_));
    }
    process_.emplace(MUST(is_clone() ? clone_environment(BERTH_PRELOAD, file_, channel_)
                                     : preload_environment(BERTH_PRELOAD, file_, channel_)));
    process_->tell("map", file_, size);
    memory_ = MUST(GuestMemory::open(guest()));
  }
  ~ParkingTest() override {
    if (!is_clone()) return;
    process_->kill();
    EXPECT_TRUE(read_at(file_, 0, size) == template_) << "the template has changed";
  }

  /// Another process, in whose memory nothing has happened so far.
  void begin_anew() {
    process_->kill();
    if (!is_clone()) file_ = make_file(directory_ / "ram-again", size);
    channel_ = directory_ / "again.sock";
    process_.emplace(MUST(is_clone() ? clone_environment(BERTH_PRELOAD, file_, channel_)
                                     : preload_environment(BERTH_PRELOAD, file_, channel_)));
    process_->tell("map", file_, size);
    memory_ = MUST(GuestMemory::open(guest()));
  }

  static bool is_clone() { return GetParam() == Kind::clone; }
  GuestProcess guest() const {
    return {.pid = process_->pid(), .memory_file = file_, .channel = channel_};
  }
  void store(std::uint64_t offset, std::uint64_t length, int value) {
    process_->tell("store", offset, length, value);
    expected_.replace(offset, length, length, static_cast<char>(value));
  }
  void expect_unchanged() { EXPECT_TRUE(process_->peek(0, size) == expected_); }
  std::string page_file(int number) const { return files_ / fmt::format("pages-{}", number); }
  ParkReport park_to(int number) { return MUST(park(*memory_, page_file(number))); }

  ScratchDirectory directory_{memory_place};
  ScratchDirectory files_{"/var/tmp"};
  std::string file_ = make_file(directory_ / "ram", size);
  std::string channel_ = directory_ / "memory.sock";
  std::string expected_ = std::string(size, '\0');
  std::string template_ = expected_;
  std::optional<TrackedProcess> process_;
  std::unique_ptr<GuestMemory> memory_;
};

INSTANTIATE_TEST_SUITE_P(All, ParkingTest, testing::Values(Kind::clone, Kind::own),
                         [](const auto& info) {
                           return info.param == Kind::clone ? "Clone" : "OwnMemory";
                         });

TEST_P(ParkingTest, GivesTheMemoryBackAndChangesNothing) {
  store(3 * page, 5 * page, 1);
  store(2 * MiB - page, 2 * MiB, 2);
  store(size - 100, 100, 3);
  const ParkReport report = park_to(1);
  EXPECT_GE(report.before.guest, 2 * MiB + 5 * page);
  EXPECT_EQ(report.after.guest, 0U);
  EXPECT_EQ(MUST(memory_use(*memory_)).guest, 0U);
  expect_unchanged();
  store(2 * MiB, page, 9);
  store(5 * MiB, page, 9);
  expect_unchanged();
}

TEST_P(ParkingTest, APageFileHasTheBytesOfItsGranules) {
  store(3 * page, page, 1);
  store(size - 100, 100, 3);
  const ParkReport report = park_to(1);
  const auto pages = MUST(PageFile::open(page_file(1)));
  EXPECT_EQ(pages.memory_size(), size);
  EXPECT_THAT(pages.held().ranges(),
              ElementsAre(PageRange{.offset = 0, .length = granule},
                          PageRange{.offset = size - granule, .length = granule}));
  EXPECT_EQ(report.mapped, 2 * granule);
  for (const PageRange& range : pages.held().ranges()) {
    EXPECT_TRUE(read_at(page_file(1), range.offset, range.length) ==
                expected_.substr(range.offset, range.length));
  }
  EXPECT_EQ(read_at(page_file(1), granule, granule), std::string(granule, '\0'));
  EXPECT_EQ(report.written + PageFile::trailer_size, allocated(page_file(1)));
}

TEST_P(ParkingTest, WhatIsAsItWasOrZeroIsNotWritten) {
  // A clone writes what its template has there, others zeros.
  store(0, page, is_clone() ? 'a' : 0);
  store(4 * MiB, 2 * MiB, 0);
  const ParkReport report = park_to(1);
  EXPECT_EQ(report.written, 0U);
  EXPECT_GE(report.back_to_source, granule);
  EXPECT_EQ(report.after.guest, 0U);
  EXPECT_EQ(allocated(page_file(1)), PageFile::trailer_size);
  expect_unchanged();
}

TEST_P(ParkingTest, ParkingAgainWritesWhatIsNew) {
  store(0, 2 * MiB, 1);
  park_to(1);
  store(MiB, page, 2);
  store(6 * MiB, page, 3);
  const ParkReport again = park_to(2);
  EXPECT_EQ(again.mapped, 2 * granule);
  EXPECT_EQ(again.after.guest, 0U);
  expect_unchanged();
  EXPECT_TRUE(MUST(is_mapped(*memory_, page_file(1))));
  // Nothing of the first one is used any more.
  store(0, 2 * MiB, 4);
  park_to(3);
  EXPECT_FALSE(MUST(is_mapped(*memory_, page_file(1))));
  EXPECT_TRUE(MUST(is_mapped(*memory_, page_file(2))));
  std::filesystem::remove(page_file(1));
  expect_unchanged();
}

TEST_P(ParkingTest, WhatOfAPageFileIsMappedNoMoreIsGivenBack) {
  store(0, 2 * MiB, 1);
  park_to(1);
  const std::uint64_t before = allocated(page_file(1));
  store(MiB, MiB, 2);
  park_to(2);
  EXPECT_TRUE(MUST(release_unmapped(*memory_, page_file(1))));
  EXPECT_EQ(allocated(page_file(1)) + MiB, before);
  EXPECT_TRUE(MUST(release_unmapped(*memory_, page_file(2))));
  expect_unchanged();
  store(0, MiB, 3);
  park_to(3);
  EXPECT_FALSE(MUST(release_unmapped(*memory_, page_file(1))));
  EXPECT_FALSE(std::filesystem::exists(page_file(1)));
  EXPECT_TRUE(MUST(release_unmapped(*memory_, page_file(2))));
  expect_unchanged();
}

// Zeros over what a page file has, and the template's bytes over what the template has not.
TEST_P(ParkingTest, WhatIsZeroAgainGoesBackToWhereItCameFrom) {
  store(4 * MiB, granule, 7);
  park_to(1);
  const std::string before = template_.substr(4 * MiB, granule);
  for (std::uint64_t at = 0; at < granule; at += page)
    store(4 * MiB + at, page, static_cast<unsigned char>(before[at]));
  const ParkReport report = park_to(2);
  EXPECT_EQ(report.written, 0U);
  EXPECT_FALSE(MUST(is_mapped(*memory_, page_file(1))));
  expect_unchanged();
}

TEST_P(ParkingTest, WhatIsSavedGoesOnInAnotherProcess) {
  store(3 * granule + 5, 3 * granule, 'x');
  store(90 * granule, 100, 'y');
  EXPECT_GE(MUST(save(*memory_, page_file(1))).written, 3 * granule);
  expect_unchanged();
  begin_anew();
  MUST(map_saved(*memory_, page_file(1)));
  expect_unchanged();
  store(4 * granule, 2 * granule, 'z');
  park_to(2);
  expect_unchanged();
}

TEST_P(ParkingTest, WhatWasParkedAndWrittenAgainIsSavedAsAWhole) {
  store(granule, 5 * granule, 'x');
  store(60 * granule, granule, 'y');
  park_to(1);
  EXPECT_TRUE(MUST(is_saved_in(*memory_, page_file(1))));
  store(2 * granule, granule, 'z');
  store(60 * granule, granule, is_clone() ? template_[60 * granule] : 0);
  EXPECT_FALSE(MUST(is_saved_in(*memory_, page_file(1))));
  park_to(2);
  EXPECT_FALSE(MUST(is_saved_in(*memory_, page_file(2))));
  store(3 * granule, 10, 'u');
  MUST(save(*memory_, page_file(3)));
  std::filesystem::remove(page_file(1));
  std::filesystem::remove(page_file(2));
  begin_anew();
  MUST(map_saved(*memory_, page_file(3)));
  expect_unchanged();
}

TEST_P(ParkingTest, WhatIsParkedOnceIsSavedWithThat) {
  store(granule, 5 * granule, 'x');
  park_to(1);
  ASSERT_TRUE(MUST(is_saved_in(*memory_, page_file(1))));
  begin_anew();
  MUST(map_saved(*memory_, page_file(1)));
  expect_unchanged();
}

TEST_P(ParkingTest, RandomWritesAndParkingsAgreeWithAModel) {
  std::minstd_rand random(7);
  for (int round = 0; round < 12; ++round) {
    for (int i = 0; i < 60; ++i) {
      const std::uint64_t offset = random() % size;
      const std::uint64_t length =
          std::min<std::uint64_t>(size - offset, 1 + random() % (3 * page));
      store(offset, length, static_cast<int>(random() % 4));
    }
    EXPECT_EQ(park_to(round).after.guest, 0U);
    expect_unchanged();
    if (!is_clone() && round % 4 == 3) MUST(restore(*memory_));
  }
  expect_unchanged();
}

TEST_P(ParkingTest, AnotherKeeperGoesOnWhereOneHasEnded) {
  store(0, MiB, 1);
  park_to(1);
  store(0, page, 2);
  memory_.reset();
  memory_ = MUST(GuestMemory::open(guest()));
  const ParkReport report = park_to(2);
  EXPECT_EQ(report.mapped, granule);
  expect_unchanged();
}

TEST_P(ParkingTest, AFullDiskLeavesTheMachineAsItWas) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root mounts";
  store(0, 4 * MiB, 1);
  const std::string place = directory_ / "small";
  std::filesystem::create_directory(place);
  ASSERT_EQ(::mount("none", place.c_str(), "tmpfs", 0, "size=1M"), 0);
  const auto parked = park(*memory_, place + "/pages");
  const bool is_there = std::filesystem::exists(place + "/pages");
  ASSERT_EQ(::umount(place.c_str()), 0);
  ASSERT_FALSE(parked);
  EXPECT_EQ(parked.error().kind(), ErrorKind::no_space);
  EXPECT_FALSE(is_there);
  EXPECT_GE(MUST(memory_use(*memory_)).guest, 4 * MiB);
  expect_unchanged();
  store(5 * MiB, page, 2);
  park_to(1);
  expect_unchanged();
}

TEST_P(ParkingTest, APageFileThatIsThereIsNotTouched) {
  store(0, page, 1);
  park_to(1);
  const auto before = std::filesystem::last_write_time(page_file(1));
  const auto parked = park(*memory_, page_file(1));
  ASSERT_FALSE(parked);
  EXPECT_EQ(parked.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(std::filesystem::last_write_time(page_file(1)), before);
  expect_unchanged();
}

TEST_P(ParkingTest, AMachineThatHasEndedLeavesNoPageFile) {
  store(0, page, 1);
  process_->kill();
  const auto parked = park(*memory_, page_file(1));
  ASSERT_FALSE(parked);
  EXPECT_FALSE(std::filesystem::exists(page_file(1)));
}

TEST_P(ParkingTest, MemoryMappedBySomebodyElseIsRefused) {
  process_->tell("unmap", 4 * MiB, page);
  const auto parked = park(*memory_, page_file(1));
  ASSERT_FALSE(parked);
  EXPECT_EQ(parked.error().kind(), ErrorKind::precondition);
}

TEST_P(ParkingTest, WhatWasReadInAfterTheFirstResumeIsReadAheadLater) {
  store(0, 8 * MiB, 1);
  park_to(1);
  auto pages = MUST(PageFile::open(page_file(1)));
  EXPECT_EQ(MUST(pages.prefetch()), 0U);
  process_->tell("load", 4 * MiB, page);
  store(6 * MiB, page, 2);
  EXPECT_EQ(MUST(record_working_set(*memory_, page_file(1))), 2 * granule);
  park_to(2);
  auto first = MUST(PageFile::open(page_file(1)));
  EXPECT_EQ(MUST(first.prefetch()), 2 * granule);
  expect_unchanged();
}

TEST_P(ParkingTest, WhatSeveralResumesCameToIsReadAhead) {
  store(0, 8 * MiB, 1);
  park_to(1);
  process_->tell("load", 4 * MiB, page);
  EXPECT_EQ(MUST(record_working_set(*memory_, page_file(1))), granule);
  store(7 * MiB, MiB, 2);
  park_to(2);
  process_->tell("load", 2 * MiB, page);
  EXPECT_EQ(MUST(record_working_set(*memory_, page_file(1))), granule);
  auto first = MUST(PageFile::open(page_file(1)));
  EXPECT_EQ(MUST(first.prefetch()), 2 * granule);
}

TEST_P(ParkingTest, WhatIsInANewerPageFileIsNotReadAheadFromAnOlderOne) {
  store(0, 8 * MiB, 1);
  park_to(1);
  process_->tell("load", 2 * MiB, page);
  process_->tell("load", 4 * MiB, page);
  EXPECT_EQ(MUST(record_working_set(*memory_, page_file(1))), 2 * granule);
  store(4 * MiB, granule, 2);
  park_to(2);
  EXPECT_TRUE(MUST(release_unmapped(*memory_, page_file(1))));
  auto first = MUST(PageFile::open(page_file(1)));
  EXPECT_EQ(MUST(first.prefetch()), granule);
}

TEST_P(ParkingTest, WhatWasReadInIsForgottenWhenItIsParkedAgain) {
  store(0, 8 * MiB, 1);
  park_to(1);
  process_->tell("load", 4 * MiB, 2 * MiB);
  EXPECT_GE(MUST(record_working_set(*memory_, page_file(1))), 2 * MiB);
  park_to(2);
  process_->tell("load", 0, page);
  EXPECT_LT(MUST(record_working_set(*memory_, page_file(1))), MiB);
}

using OwnMemoryParkingTest = ParkingTest;
INSTANTIATE_TEST_SUITE_P(All, OwnMemoryParkingTest, testing::Values(Kind::own),
                         [](const auto&) { return "OwnMemory"; });

TEST_P(OwnMemoryParkingTest, IsNotTrackedUntilItIsRestored) {
  store(0, MiB, 1);
  park_to(1);
  EXPECT_EQ(allocated(file_), 0U);
  const auto scan = DirtyScan::attach(process_->pid(), file_);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::precondition);
  store(5 * MiB, page, 2);
  MUST(restore(*memory_));
  EXPECT_FALSE(MUST(is_mapped(*memory_, page_file(1))));
  expect_unchanged();
  EXPECT_TRUE(read_at(file_, 0, size) == expected_);
  const auto again = MUST(DirtyScan::attach(process_->pid(), file_));
  MUST(again->take());
  store(page, page, 3);
  store(6 * MiB, page, 4);
  EXPECT_EQ(total_length(MUST(again->take())), 2 * page);
}

TEST_P(OwnMemoryParkingTest, IsRestoredPieceByPieceWhileItRunsInBetween) {
  store(0, MiB, 1);
  store(4 * MiB, MiB, 2);
  park_to(1);
  int pieces = 1;
  for (; !MUST(restore(*memory_, 512 * KiB)); ++pieces) {
    store(0, page, static_cast<char>(pieces));
    store(5 * MiB - page, page, static_cast<char>(pieces));
    expect_unchanged();
    MUST(read_in(*memory_, 512 * KiB));
  }
  EXPECT_EQ(pieces, 4);
  EXPECT_FALSE(MUST(is_mapped(*memory_, page_file(1))));
  expect_unchanged();
  EXPECT_TRUE(read_at(file_, 0, size) == expected_);
  EXPECT_TRUE(DirtyScan::attach(process_->pid(), file_));
}

// What is in the memory object below page files, of a restore that was cut short, is nothing.
TEST_P(OwnMemoryParkingTest, WhatARestoreThatWasCutShortHasLeftDoesNoHarm) {
  store(0, MiB, 1);
  park_to(1);
  write_at(file_, 0, std::string(MiB, 'x'));
  expect_unchanged();
  store(0, 512 * KiB, 0);
  MUST(restore(*memory_));
  expect_unchanged();
  park_to(2);
  write_at(file_, 512 * KiB, std::string(512 * KiB, 'x'));
  EXPECT_EQ(park_to(3).after.guest, 0U);
  expect_unchanged();
}

TEST(RestoreTest, AFullMemoryDirectoryLeavesTheMachineParked) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root mounts";
  const ScratchDirectory directory("/var/tmp");
  const std::string place = directory / "memory";
  std::filesystem::create_directory(place);
  ASSERT_EQ(::mount("none", place.c_str(), "tmpfs", 0, "size=4M"), 0);
  const std::string file = make_file(place + "/ram", 8 * MiB);
  const std::string channel = directory / "memory.sock";
  {
    TrackedProcess process(MUST(preload_environment(BERTH_PRELOAD, file, channel)));
    process.tell("map", file, 8 * MiB);
    process.tell("store", MiB, 2 * MiB, 1);
    const auto memory =
        MUST(GuestMemory::open({.pid = process.pid(), .memory_file = file, .channel = channel}));
    MUST(park(*memory, directory / "pages"));
    write_at(make_file(place + "/other", 3 * MiB), 0, std::string(3 * MiB, 'o'));
    const auto restored = restore(*memory);
    ASSERT_FALSE(restored);
    EXPECT_EQ(restored.error().kind(), ErrorKind::no_space);
    EXPECT_EQ(allocated(file), 0U);
    EXPECT_EQ(process.peek(MiB, 2 * MiB), std::string(2 * MiB, '\x01'));
    std::filesystem::remove(place + "/other");
    MUST(restore(*memory));
    EXPECT_EQ(read_at(file, MiB, 2 * MiB), std::string(2 * MiB, '\x01'));
  }
  ASSERT_EQ(::umount2(place.c_str(), MNT_DETACH), 0);
}

using CloneParkingTest = ParkingTest;
INSTANTIATE_TEST_SUITE_P(All, CloneParkingTest, testing::Values(Kind::clone),
                         [](const auto&) { return "Clone"; });

TEST_P(CloneParkingTest, IsNotRestored) {
  const auto restored = restore(*memory_);
  ASSERT_FALSE(restored);
  EXPECT_EQ(restored.error().kind(), ErrorKind::precondition);
}

// More ranges than a request of the channel has, as scattered as can be.
class ScatteredParkingTest : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 160 * MiB;
  static constexpr std::uint64_t runs = size / granule / 2;

  ScatteredParkingTest() : process_(MUST(preload_environment(BERTH_PRELOAD, file_, channel_))) {
    process_.tell("map", file_, size);
    for (std::uint64_t i = 0; i < runs; ++i) store(2 * i * granule, 1 + static_cast<int>(i % 255));
    memory_ =
        MUST(GuestMemory::open({.pid = process_.pid(), .memory_file = file_, .channel = channel_}));
  }
  void store(std::uint64_t offset, int value) {
    process_.tell("store", offset, page, value);
    expected_.replace(offset, page, page, static_cast<char>(value));
  }
  void expect_unchanged() { EXPECT_TRUE(process_.peek(0, size) == expected_); }

  ScratchDirectory directory_{memory_place};
  ScratchDirectory files_{"/var/tmp"};
  std::string file_ = make_file(directory_ / "ram", size);
  std::string channel_ = directory_ / "memory.sock";
  TrackedProcess process_;
  std::string expected_ = std::string(size, '\0');
  std::unique_ptr<GuestMemory> memory_;
};

TEST_F(ScatteredParkingTest, IsParkedInManyRequests) {
  static_assert(runs > channel::ranges_max);
  EXPECT_EQ(MUST(park(*memory_, files_ / "pages")).written, runs * page);
  EXPECT_LE(memory_->pieces().size(), memory_mappings_max);
  expect_unchanged();
}

TEST_F(ScatteredParkingTest, AProcessThatMayHaveNoMoreMappingsGoesOnWithThoseThatItGot) {
  int mappings_max = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> mappings_max;
  if (mappings_max < 10'000 || mappings_max > 1'000'000)
    GTEST_SKIP() << "a host with " << mappings_max << " mappings a process";
  process_.tell("crowd", mappings_max - 2000, 0);
  const auto parked = park(*memory_, files_ / "pages");
  ASSERT_FALSE(parked);
  EXPECT_EQ(parked.error().kind(), ErrorKind::limit) << parked.error().message();
  EXPECT_TRUE(MUST(is_mapped(*memory_, files_ / "pages")));
  expect_unchanged();
  store(0, 99);
  store(size - granule, 99);
  expect_unchanged();
}

}  // namespace
}  // namespace berth::memory
