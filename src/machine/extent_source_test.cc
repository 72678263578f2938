#include "machine/extent_source.h"

#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "machine/fake_volume.h"
#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t block = FakeVolume::block_size;
constexpr std::uint64_t block_count = 10'000;

class ExtentSourceTest : public testing::Test {
 protected:
  Result<std::vector<disk::Extent>> all_of(ExtentSource& source) {
    std::vector<disk::Extent> extents;
    while (true) {
      const auto extent = TRY(loop_->run_until_complete(source.next()));
      if (!extent) return extents;
      extents.push_back(*extent);
    }
  }
  void write_every_second_block() {
    const std::vector<std::byte> data(block, std::byte{1});
    for (std::uint64_t i = 0; i < block_count; i += 2) {
      ASSERT_TRUE(loop_->run_until_complete(volume_.write(i * block, data)));
    }
  }
  void expect_every_second_block(ExtentSource& source) {
    const auto extents = all_of(source);
    ASSERT_TRUE(extents) << extents.error().message();
    ASSERT_EQ(extents->size(), block_count / 2);
    for (std::uint64_t i = 0; i < extents->size(); ++i)
      EXPECT_EQ((*extents)[i], (disk::Extent{2 * i * block, block}));
  }

  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  FakeVolume volume_{block_count * block};
};

TEST_F(ExtentSourceTest, ChangesOfManyPagesComeInOrder) {
  ASSERT_TRUE(loop_->run_until_complete(volume_.cut({.refpoint = "r"})));
  write_every_second_block();
  ASSERT_TRUE(loop_->run_until_complete(volume_.cut({.checkpoint = "c"})));
  const auto source = changes_of(volume_, {.since = "r", .until = "c"});
  expect_every_second_block(*source);
  EXPECT_TRUE(source->exact());
}

TEST_F(ExtentSourceTest, DataWithLittleBetweenIsOneExtent) {
  write_every_second_block();
  ASSERT_TRUE(loop_->run_until_complete(volume_.cut({.checkpoint = "c"})));
  const auto reader = volume_.read_checkpoint("c").value();
  const auto extents = all_of(*data_of(*reader));
  ASSERT_TRUE(extents);
  ASSERT_EQ(extents->size(), 1U);
  EXPECT_EQ(extents->front(), (disk::Extent{0, (block_count - 1) * block}));
}

TEST_F(ExtentSourceTest, DataFarApartStaysApart) {
  const std::vector<std::byte> data(block, std::byte{1});
  const std::uint64_t step = data_gap_max + 2 * block;
  for (std::uint64_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(loop_->run_until_complete(volume_.write(i * step, data)));
  }
  ASSERT_TRUE(loop_->run_until_complete(volume_.cut({.checkpoint = "c"})));
  const auto reader = volume_.read_checkpoint("c").value();
  const auto extents = all_of(*data_of(*reader));
  ASSERT_TRUE(extents);
  ASSERT_EQ(extents->size(), 100U);
  for (std::uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ((*extents)[i], (disk::Extent{i * step, block}));
  }
}

TEST_F(ExtentSourceTest, DataOfAFileIsWhatIsNoHole) {
  const TemporaryDirectory directory;
  write_text(directory / "file", std::string(3 * block, 'a'));
  const auto opened = open_directory(*loop_, directory.path(), false).value()->open("file", {});
  ASSERT_TRUE(opened);
  File& file = **opened;
  ASSERT_TRUE(file.truncate(1000 * block));
  const auto extents = all_of(*data_of(file, 1000 * block));
  ASSERT_TRUE(extents);
  ASSERT_EQ(extents->size(), 1U);
  EXPECT_EQ(extents->front(), (disk::Extent{0, 3 * block}));
  EXPECT_EQ(all_of(*data_of(file, 2 * block))->front(), (disk::Extent{0, 2 * block}));
  ASSERT_TRUE(file.truncate(0));
  EXPECT_TRUE(all_of(*data_of(file, 0))->empty());
}

TEST_F(ExtentSourceTest, AnErrorEndsIt) {
  const auto source = changes_of(volume_, {.since = "none"});
  EXPECT_EQ(all_of(*source).error().kind(), ErrorKind::full_backup_required);
}

}  // namespace
}  // namespace berth::machine
