#include "nbd/memory_export.h"

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/test_support.h"
#include "async/uring_loop.h"

namespace berth::nbd {
namespace {

constexpr std::uint64_t block = MemoryExport::block_size;

struct Flags {
  std::uint64_t length;
  std::uint32_t flags;
  friend bool operator==(const Flags&, const Flags&) = default;
};

class MemoryExportTest : public testing::Test {
 protected:
  template <typename T>
  T finish(Task<T> task) {
    return loop_->run_until_complete(std::move(task));
  }
  void write(std::uint64_t offset, std::size_t length, int value) {
    const std::vector<std::byte> bytes(length, static_cast<std::byte>(value));
    MUST(finish(export_.write(offset, bytes, false)));
  }
  bool all_are(std::uint64_t offset, std::size_t length, int value) {
    std::vector<std::byte> bytes(length);
    MUST(finish(export_.read(offset, bytes)));
    return bytes == std::vector<std::byte>(length, static_cast<std::byte>(value));
  }
  std::vector<Flags> status(const std::string& context, std::uint64_t offset, std::uint64_t length,
                            std::size_t extents_max = 100) {
    std::vector<Flags> found;
    for (const auto& extent :
         MUST(finish(export_.block_status(context, offset, length, extents_max)))) {
      found.push_back({extent.length, extent.flags});
    }
    return found;
  }

  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  MemoryExport export_{{.info = {.name = "memory", .size = 16 * block},
                        .changed_context = "berth:changed:start",
                        .allocated_bytes_max = 4 * block}};
};

TEST_F(MemoryExportTest, HoldsWhatIsWrittenAndIsZeroElsewhere) {
  write(block - 10, 20, 7);
  EXPECT_TRUE(all_are(block - 10, 20, 7));
  EXPECT_TRUE(all_are(0, block - 10, 0));
  EXPECT_TRUE(all_are(block + 10, 3 * block, 0));
  EXPECT_EQ(export_.allocated_bytes(), 2 * block);
}

TEST_F(MemoryExportTest, RunsOutOfSpaceAtItsLimit) {
  write(0, 4 * block, 1);
  const std::vector<std::byte> one(1);
  EXPECT_EQ(finish(export_.write(4 * block, one, false)).error().kind(), ErrorKind::no_space);
  MUST(finish(export_.discard(0, block, false)));
  write(4 * block, 1, 2);
  EXPECT_TRUE(all_are(0, block, 0));
}

TEST_F(MemoryExportTest, DiscardsWholeBlocksAlone) {
  write(0, 3 * block, 1);
  MUST(finish(export_.discard(1, 3 * block - 1, false)));
  EXPECT_TRUE(all_are(0, block, 1));
  EXPECT_TRUE(all_are(block, 2 * block, 0));
  EXPECT_EQ(export_.allocated_bytes(), block);
}

TEST_F(MemoryExportTest, ZeroesFastOrNotAtAll) {
  write(0, 2 * block, 1);
  const auto slow = finish(export_.zero(0, block + 1, {.fast_only = true}));
  EXPECT_EQ(slow.error().kind(), ErrorKind::unsupported);
  EXPECT_TRUE(all_are(0, 2 * block, 1));
  MUST(finish(export_.zero(0, block, {.fast_only = true})));
  MUST(finish(export_.zero(block, 1, {})));
  EXPECT_TRUE(all_are(0, block + 1, 0));
  EXPECT_TRUE(all_are(block + 1, block - 1, 1));
  EXPECT_EQ(export_.allocated_bytes(), block);
  MUST(finish(export_.zero(0, 2 * block, {.keep_allocated = true})));
  EXPECT_EQ(export_.allocated_bytes(), 2 * block);
}

TEST_F(MemoryExportTest, ShowsWhatIsAllocatedAndWhatHasChanged) {
  write(block, 1, 1);
  EXPECT_EQ(status("base:allocation", 0, 3 * block),
            (std::vector<Flags>{{block, 3}, {block, 0}, {block, 3}}));
  EXPECT_EQ(status("base:allocation", 100, 3 * block, 1), (std::vector<Flags>{{block - 100, 3}}));
  export_.mark();
  EXPECT_EQ(status("berth:changed:start", 0, 4 * block), (std::vector<Flags>{{4 * block, 0}}));
  MUST(finish(export_.discard(0, 2 * block, false)));
  EXPECT_EQ(status("berth:changed:start", 0, 4 * block),
            (std::vector<Flags>{{block, 0}, {block, 1}, {2 * block, 0}}));
  EXPECT_FALSE(finish(export_.block_status("berth:changed:other", 0, block, 1)));
}

TEST(FixedExports, FindsByNameAndGivesTheFirstByDefault) {
  const auto loop = MUST(UringLoop::create());
  FixedExports exports;
  EXPECT_FALSE(loop->run_until_complete(exports.find("")));
  for (const char* name : {"a", "b"}) {
    exports.add(std::make_shared<MemoryExport>(
        MemoryExport::Options{.info = {.name = name, .description = "memory", .size = 1}}));
  }
  EXPECT_THAT(exports.list(),
              testing::ElementsAre(ListedExport{"a", "memory"}, ListedExport{"b", "memory"}));
  EXPECT_EQ(MUST(loop->run_until_complete(exports.find("")))->info().name, "a");
  EXPECT_EQ(MUST(loop->run_until_complete(exports.find("b")))->info().name, "b");
  EXPECT_EQ(loop->run_until_complete(exports.find("c")).error().kind(), ErrorKind::not_found);
}

}  // namespace
}  // namespace berth::nbd
