#include "async/gate.h"

#include <chrono>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "async/event.h"
#include "async/test_support.h"

namespace berth {
namespace {

class GateTest : public LoopTest {};

Task<> wait_and_count(Event& event, const bool& go, int& count) {
  while (!go) co_await event.wait();
  ++count;
}

Task<> yield_and_count(Loop& loop, int& count) {
  co_await loop.yield();
  ++count;
}

TEST_F(GateTest, StartsATaskAtOnceAndOwnsItUntilItEnds) {
  Gate gate(*loop_);
  int count = 0;
  gate.spawn(yield_and_count(*loop_, count));
  EXPECT_EQ(gate.size(), 1U);
  EXPECT_EQ(count, 0);
  run(*loop_, gate.drained());
  EXPECT_EQ(count, 1);
  EXPECT_EQ(gate.size(), 0U);
}

TEST_F(GateTest, ATaskThatEndsAtOnceLeavesNothingBehind) {
  Gate gate(*loop_);
  const auto nothing = []() -> Task<> { co_return; };
  gate.spawn(nothing());
  EXPECT_EQ(gate.size(), 0U);
}

TEST_F(GateTest, AnEmptyGateIsDrained) {
  Gate gate(*loop_);
  run(*loop_, gate.drained());
}

TEST_F(GateTest, DrainedWaitsForTasksSpawnedMeanwhile) {
  Gate gate(*loop_);
  int count = 0;
  const auto spawn_more = [](Loop& loop, Gate& owner, int& counter) -> Task<> {
    co_await loop.yield();
    owner.spawn(yield_and_count(loop, counter));
    ++counter;
  };
  gate.spawn(spawn_more(*loop_, gate, count));
  run(*loop_, gate.drained());
  EXPECT_EQ(count, 2);
}

TEST_F(GateTest, SeveralMayWaitForIt) {
  Gate gate(*loop_);
  Gate waiters(*loop_);
  Event event(*loop_);
  bool go = false;
  int count = 0;
  int drained = 0;
  const auto wait = [](Gate& of, int& counter) -> Task<> {
    co_await of.drained();
    ++counter;
  };
  for (int i = 0; i < 100; ++i) gate.spawn(wait_and_count(event, go, count));
  for (int i = 0; i < 3; ++i) waiters.spawn(wait(gate, drained));
  EXPECT_EQ(gate.size(), 100U);
  EXPECT_EQ(drained, 0);
  go = true;
  event.notify_all();
  run(*loop_, waiters.drained());
  EXPECT_EQ(count, 100);
  EXPECT_EQ(drained, 3);
}

TEST_F(GateTest, AbandonDestroysTasksWhereTheyStand) {
  Gate gate(*loop_);
  Event event(*loop_);
  const bool go = false;
  int count = 0;
  auto held = std::make_shared<int>(0);
  const auto hold = [](Event& on, std::shared_ptr<int> value, int& counter) -> Task<> {
    co_await on.wait();
    counter += *value;
  };
  for (int i = 0; i < 10; ++i) gate.spawn(wait_and_count(event, go, count));
  gate.spawn(hold(event, held, count));
  EXPECT_EQ(held.use_count(), 2);
  gate.abandon();
  EXPECT_EQ(gate.size(), 0U);
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(count, 0);
}

TEST_F(GateTest, AbandonTakesTimersBack) {
  Gate gate(*loop_);
  const auto sleep = [](Loop& loop) -> Task<> { co_await loop.sleep(std::chrono::hours(1)); };
  gate.spawn(sleep(*loop_));
  gate.abandon();
}

TEST(GateDeathTest, DestroyingAGateWithTasksInItEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto destroy_too_early = [] {
    auto loop = MUST(UringLoop::create());
    int count = 0;
    Gate gate(*loop);
    gate.spawn(yield_and_count(*loop, count));
  };
  EXPECT_DEATH(destroy_too_early(), "CHECK failed: count_ == 0");
}

}  // namespace
}  // namespace berth
