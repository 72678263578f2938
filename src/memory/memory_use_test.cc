#include "memory/memory_use.h"

#include <optional>

#include <sys/sysinfo.h>

#include <gtest/gtest.h>

#include "memory/memory_object.h"
#include "memory/preload.h"
#include "memory/test_support.h"

namespace berth::memory {
namespace {

class MemoryUseTest : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 16 * MiB;

  std::unique_ptr<GuestMemory> open() {
    process_->tell("map", file_, size);
    return MUST(
        GuestMemory::open({.pid = process_->pid(), .memory_file = file_, .channel = channel_}));
  }
  std::unique_ptr<GuestMemory> open_clone() {
    write_at(file_, 0, std::string(size, 'x'));
    MUST(seal_memory_object(file_));
    process_.emplace(MUST(clone_environment(BERTH_PRELOAD, file_, channel_)));
    return open();
  }

  ScratchDirectory directory_{memory_place};
  std::string file_ = make_file(directory_ / "ram", size);
  std::string channel_ = directory_ / "memory.sock";
  std::optional<TrackedProcess> process_;
};

TEST_F(MemoryUseTest, OfAMachineWithMemoryOfItsOwnIsWhatItsMemoryObjectHas) {
  process_.emplace(MUST(preload_environment(BERTH_PRELOAD, file_, channel_)));
  const auto memory = open();
  EXPECT_EQ(MUST(memory_use(*memory)).guest, 0U);
  process_->tell("store", 3 * page, 10 * page, 1);
  const MemoryUse use = MUST(memory_use(*memory));
  EXPECT_EQ(use.guest, 10 * page);
  EXPECT_GT(use.process, page);
  EXPECT_LT(use.process, size);
}

TEST_F(MemoryUseTest, OfACloneIsWhatItHasWritten) {
  const auto memory = open_clone();
  process_->tell("load", 0, size);
  EXPECT_EQ(MUST(memory_use(*memory)).guest, 0U);
  const std::uint64_t before = MUST(memory_use(*memory)).process;
  process_->tell("store", 0, 100 * page, 1);
  const MemoryUse use = MUST(memory_use(*memory));
  EXPECT_EQ(use.guest, 100 * page);
  EXPECT_LT(use.process, before + 50 * page);
}

TEST_F(MemoryUseTest, OfAProcessThatHasEndedIsAnError) {
  process_.emplace(MUST(preload_environment(BERTH_PRELOAD, file_, channel_)));
  const auto memory = open();
  process_->kill();
  EXPECT_FALSE(memory_use(*memory));
}

TEST_F(MemoryUseTest, AProcesssOwnPagesAreNoneOfTheGuests) {
  const auto memory = open_clone();
  process_->tell("store", 0, 4 * MiB, 7);
  const auto own = MUST(own_pages(process_->pid()));
  std::uint64_t total = 0;
  for (const PageRegion& region : own) {
    EXPECT_LT(region.start, region.end);
    EXPECT_TRUE(region.end <= memory->address() || region.start >= memory->address() + size);
    total += region.end - region.start;
  }
  EXPECT_GT(total, page);
  EXPECT_LE(total, MUST(memory_use(*memory)).process);
  EXPECT_TRUE(swap_in(process_->pid(), own));
  process_->kill();
  EXPECT_FALSE(own_pages(process_->pid()));
}

TEST_F(MemoryUseTest, TrimmingTakesSwapAndChangesNothing) {
  const auto memory = open_clone();
  process_->tell("store", 0, 4 * MiB, 7);
  struct sysinfo host{};
  ASSERT_EQ(::sysinfo(&host), 0);
  const auto trimmed = trim(*memory);
  if (host.totalswap == 0) {
    ASSERT_FALSE(trimmed);
    EXPECT_EQ(trimmed.error().kind(), ErrorKind::precondition);
  } else {
    EXPECT_GE(MUST(Result(trimmed)), 4 * MiB);
    const MemoryUse use = MUST(memory_use(*memory));
    EXPECT_EQ(use.guest + use.swapped, 4 * MiB);
    EXPECT_LT(use.guest, 2 * MiB);
  }
  EXPECT_EQ(process_->peek(0, 4 * MiB), std::string(4 * MiB, '\x07'));
  EXPECT_EQ(process_->peek(4 * MiB, page), std::string(page, 'x'));
}

}  // namespace
}  // namespace berth::memory
