#include "disk/intent_log.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/sim_machine.h"

namespace berth::disk {
namespace {

constexpr std::uint64_t region_count = 4000;
constexpr std::size_t hot_max = 64;

class IntentLogTest : public testing::Test {
 protected:
  void SetUp() override {
    Superblock superblock{.volume = {}, .block_size = 64 * KiB, .created_ms = 0};
    superblock.volume.bytes.fill(std::byte{5});
    VolumeState state;
    state.size = region_count * region_size;
    MUST(run(MapFile::create(machine_.loop, *machine_.directory, superblock, state)));
    map_ = MUST(run(MapFile::open(machine_.loop, *machine_.directory, false)));
    make_log();
  }
  void make_log() {
    log_ = std::make_unique<IntentLog>(machine_.loop, gate_, *map_, hot_max,
                                       [this] { ++cooling_requests_; });
    log_->set_region_count(region_count);
  }
  void TearDown() override { run(gate_.drained()); }
  template <typename T>
  T run(Task<T> task) {
    return machine_.loop.run_until_complete(std::move(task));
  }
  void run(Task<> task) { machine_.loop.run_until_complete(std::move(task)); }
  Result<void> announce(std::uint64_t first, std::uint64_t last, Epoch epoch) {
    return run(log_->announce(first, last, epoch));
  }
  IntentRecord durable() {
    return MUST(run(map_->read_intents())).newest().value_or(IntentRecord{});
  }
  bool is_durable(std::uint64_t region, Epoch epoch) {
    return std::ranges::any_of(durable().regions, [=](const HotRegion& hot) {
      return hot.region == region && hot.epoch >= epoch;
    });
  }
  struct Waiter {
    std::optional<Result<void>> result;
  };
  Task<> wait_for(std::uint64_t first, std::uint64_t last, Epoch epoch, Waiter& waiter) {
    waiter.result = co_await log_->announce(first, last, epoch);
  }

  SimMachine machine_{3};
  Gate gate_{machine_.loop};
  std::unique_ptr<MapFile> map_;
  std::unique_ptr<IntentLog> log_;
  int cooling_requests_ = 0;
};

TEST_F(IntentLogTest, ARegionIsHotWhenItsIntentIsDurable) {
  EXPECT_FALSE(log_->is_hot(7, 1));
  MUST(announce(7, 7, 1));
  EXPECT_TRUE(log_->is_hot(7, 1));
  EXPECT_FALSE(log_->is_hot(7, 2));
  EXPECT_FALSE(log_->is_hot(8, 1));
  EXPECT_TRUE(is_durable(7, 1));
  EXPECT_EQ(log_->hot_count(), 1U);
}

TEST_F(IntentLogTest, AnotherEpochIsAnotherIntent) {
  MUST(announce(7, 7, 1));
  MUST(announce(7, 7, 5));
  EXPECT_TRUE(log_->is_hot(7, 5));
  EXPECT_TRUE(is_durable(7, 5));
  EXPECT_EQ(log_->hot_count(), 1U);
  EXPECT_EQ(durable().epoch, 5U);
  EXPECT_EQ(log_->newest_hot_epoch(), 5U);
}

TEST_F(IntentLogTest, WhatIsHotAlreadyCostsNoCommit) {
  MUST(announce(3, 5, 2));
  const std::uint64_t sequence = log_->sequence();
  MUST(announce(3, 5, 2));
  MUST(announce(4, 4, 1));
  EXPECT_EQ(log_->sequence(), sequence);
}

TEST_F(IntentLogTest, AnnouncementsThatComeTogetherShareCommits) {
  std::vector<Waiter> waiters(40);
  for (std::uint64_t i = 0; i < waiters.size(); ++i) gate_.spawn(wait_for(i, i, 1, waiters[i]));
  run(gate_.drained());
  for (std::uint64_t i = 0; i < waiters.size(); ++i) {
    EXPECT_TRUE(waiters[i].result->has_value());
    EXPECT_TRUE(log_->is_hot(i, 1));
    EXPECT_TRUE(is_durable(i, 1));
  }
  EXPECT_LE(log_->sequence(), 2U);  // the first alone, and all that came meanwhile
}

TEST_F(IntentLogTest, ARecordIsTheWholeHotSet) {
  MUST(announce(1, 1, 1));
  MUST(announce(2, 2, 2));
  MUST(announce(3, 3, 3));
  EXPECT_EQ(durable().regions.size(), 3U);
  EXPECT_TRUE(is_durable(1, 1));
}

TEST_F(IntentLogTest, TheHotSetIsBoundedAndWaitsForCooling) {
  for (std::uint64_t region = 0; region < hot_max; ++region) MUST(announce(region, region, 1));
  EXPECT_EQ(log_->hot_count(), hot_max);
  EXPECT_GT(cooling_requests_, 0);  // asked for ahead, before it was full
  Waiter waiter;
  gate_.spawn(wait_for(1000, 1000, 1, waiter));
  EXPECT_TRUE(machine_.loop.run_until_idle());
  EXPECT_FALSE(waiter.result.has_value());
  log_->cool(log_->now(), hot_max / 2);
  EXPECT_EQ(log_->hot_count(), hot_max / 2);
  run(gate_.drained());
  EXPECT_TRUE(waiter.result->has_value());
  EXPECT_TRUE(log_->is_hot(1000, 1));
  EXPECT_LE(durable().regions.size(), hot_max);
}

TEST_F(IntentLogTest, CoolingIsAskedForBeforeTheSetIsFull) {
  for (std::uint64_t region = 0; region < hot_max && cooling_requests_ == 0; ++region)
    MUST(announce(region, region, 1));
  EXPECT_LT(log_->hot_count(), hot_max);
  EXPECT_GT(log_->hot_count(), hot_max / 2);
}

TEST_F(IntentLogTest, TheOldestCoolFirst) {
  for (std::uint64_t region = 0; region < 10; ++region) MUST(announce(region, region, 1));
  log_->cool(log_->now(), 4);
  for (std::uint64_t region = 0; region < 10; ++region)
    EXPECT_EQ(log_->is_hot(region, 1), region >= 6) << region;
}

TEST_F(IntentLogTest, ARegionWithAWriteInFlightDoesNotCool) {
  MUST(announce(1, 2, 1));
  log_->enter(1);
  log_->cool(log_->now(), 0);
  EXPECT_TRUE(log_->is_hot(1, 1));
  EXPECT_FALSE(log_->is_hot(2, 1));
  log_->leave(1);
  log_->cool(log_->now(), 0);
  EXPECT_FALSE(log_->is_hot(1, 1));
}

TEST_F(IntentLogTest, ARegionThatWasWrittenAfterTheCaptureDoesNotCool) {
  MUST(announce(1, 2, 1));
  const std::uint64_t captured = log_->now();
  log_->enter(1);
  log_->leave(1);
  MUST(announce(2, 2, 2));  // hot again, since
  log_->cool(captured, 0);
  EXPECT_TRUE(log_->is_hot(1, 1));
  EXPECT_TRUE(log_->is_hot(2, 2));
  log_->cool(log_->now(), 0);
  EXPECT_EQ(log_->hot_count(), 0U);
}

TEST_F(IntentLogTest, WhatIsRestoredIsHotAndTheRingGoesOn) {
  for (std::uint64_t region = 0; region < 5; ++region) MUST(announce(region, region, 3));
  const IntentRecord newest = durable();
  make_log();
  log_->restore(newest);
  for (std::uint64_t region = 0; region < 5; ++region) EXPECT_TRUE(log_->is_hot(region, 3));
  EXPECT_EQ(log_->hot_count(), 5U);
  MUST(announce(9, 9, 4));
  EXPECT_EQ(durable().sequence, newest.sequence + 1);
  EXPECT_EQ(durable().regions.size(), 6U);
}

TEST_F(IntentLogTest, RegionsBeyondTheEndAreForgotten) {
  MUST(announce(100, 105, 1));
  log_->set_region_count(103);
  EXPECT_EQ(log_->hot_count(), 3U);
  MUST(announce(1, 1, 1));
  EXPECT_EQ(durable().regions.size(), 4U);
  make_log();
  log_->set_region_count(3);
  log_->restore({.sequence = 9,
                 .epoch = 1,
                 .regions = {{.region = 2, .epoch = 1}, {.region = 3, .epoch = 1}}});
  EXPECT_EQ(log_->hot_count(), 1U);
}

TEST_F(IntentLogTest, WhoWaitsForRoomThatCannotBeMadeGetsTheReason) {
  for (std::uint64_t region = 0; region < hot_max; ++region) MUST(announce(region, region, 1));
  Waiter waiter;
  gate_.spawn(wait_for(1000, 1000, 1, waiter));
  EXPECT_TRUE(machine_.loop.run_until_idle());
  log_->refuse_pending(Error(ErrorKind::no_space, "the disk is full"));
  run(gate_.drained());
  ASSERT_TRUE(waiter.result.has_value());
  EXPECT_EQ(waiter.result->error().kind(), ErrorKind::no_space);
  EXPECT_FALSE(log_->is_hot(1000, 1));
  log_->cool(log_->now(), 0);
  EXPECT_TRUE(announce(1000, 1000, 1).has_value());  // later ones try again
}

TEST_F(IntentLogTest, ACommitThatFailsIsForGood) {
  machine_.host.faults().add({.path = "vol/map", .on = fault_on::sync});
  EXPECT_EQ(announce(1, 1, 1).error().kind(), ErrorKind::io_error);
  EXPECT_FALSE(log_->is_hot(1, 1));
  EXPECT_EQ(announce(2, 2, 1).error().kind(), ErrorKind::io_error);
}

TEST_F(IntentLogTest, AHotSetIsNeverLargerThanARecordNorSmallerThanARequest) {
  IntentLog tiny(machine_.loop, gate_, *map_, 1, [] {});
  EXPECT_GE(tiny.hot_max(), IntentLog::announce_max);
  IntentLog huge(machine_.loop, gate_, *map_, 1'000'000, [] {});
  EXPECT_LE(huge.hot_max(), intent_regions_max);
}

}  // namespace
}  // namespace berth::disk
