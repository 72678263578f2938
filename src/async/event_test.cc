#include "async/event.h"

#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "async/test_support.h"

namespace berth {
namespace {

class EventTest : public LoopTest {};

class AsyncMutexTest : public LoopTest {};

Task<> wait_and_note(Event& event, int name, std::vector<int>& order) {
  co_await event.wait();
  order.push_back(name);
}

TEST_F(EventTest, ResumesAllWhoWaitInTheOrderTheyCame) {
  Event event(*loop_);
  Gate gate(*loop_);
  std::vector<int> order;
  EXPECT_FALSE(event.has_waiters());
  for (int i = 0; i < 3; ++i) gate.spawn(wait_and_note(event, i, order));
  EXPECT_TRUE(event.has_waiters());
  event.notify_all();
  EXPECT_FALSE(event.has_waiters());
  EXPECT_TRUE(order.empty()) << "a waiter ran inside notify_all";
  run(*loop_, gate.drained());
  EXPECT_EQ(order, (std::vector{0, 1, 2}));
}

TEST_F(EventTest, IsNotRemembered) {
  Event event(*loop_);
  Gate gate(*loop_);
  std::vector<int> order;
  event.notify_all();
  gate.spawn(wait_and_note(event, 1, order));
  const auto yield_some = [](Loop& loop) -> Task<> {
    for (int i = 0; i < 10; ++i) co_await loop.yield();
  };
  run(*loop_, yield_some(*loop_));
  EXPECT_TRUE(order.empty());
  event.notify_all();
  run(*loop_, gate.drained());
}

TEST_F(EventTest, WaitingAgainWaitsForTheNextOne) {
  Event event(*loop_);
  Gate gate(*loop_);
  int notified = 0;
  const auto wait_twice = [](Event& on, int& counter) -> Task<> {
    co_await on.wait();
    ++counter;
    co_await on.wait();
    ++counter;
  };
  const auto notify = [](Loop& loop, Event& on) -> Task<> {
    on.notify_all();
    co_await loop.yield();
    co_await loop.yield();
  };
  gate.spawn(wait_twice(event, notified));
  run(*loop_, notify(*loop_, event));
  EXPECT_EQ(notified, 1);
  run(*loop_, notify(*loop_, event));
  EXPECT_EQ(notified, 2);
}

Task<> use_alone(Loop& loop, AsyncMutex& mutex, int name, int& inside, std::vector<int>& order) {
  auto guard = co_await mutex.lock();
  EXPECT_EQ(++inside, 1);
  for (int i = 0; i < 3; ++i) co_await loop.yield();
  order.push_back(name);
  --inside;
}

TEST_F(AsyncMutexTest, LetsOneInAtATimeInTheOrderOfArrival) {
  AsyncMutex mutex(*loop_);
  Gate gate(*loop_);
  int inside = 0;
  std::vector<int> order;
  for (int i = 0; i < 5; ++i) gate.spawn(use_alone(*loop_, mutex, i, inside, order));
  run(*loop_, gate.drained());
  EXPECT_EQ(order, (std::vector{0, 1, 2, 3, 4}));
}

TEST_F(AsyncMutexTest, NobodyOvertakesWhoHasBeenGivenTheLock) {
  AsyncMutex mutex(*loop_);
  Gate gate(*loop_);
  int inside = 0;
  std::vector<int> order;
  const auto unlock_then_lock = [](Loop& loop, AsyncMutex& of, int& in,
                                   std::vector<int>& out) -> Task<> {
    {
      auto guard = co_await of.lock();
      co_await loop.yield();
    }
    // The next in line has the lock by now, although it has not run yet.
    co_await use_alone(loop, of, 9, in, out);
  };
  gate.spawn(unlock_then_lock(*loop_, mutex, inside, order));
  gate.spawn(use_alone(*loop_, mutex, 1, inside, order));
  run(*loop_, gate.drained());
  EXPECT_EQ(order, (std::vector{1, 9}));
}

TEST_F(AsyncMutexTest, AMovedGuardUnlocksOnce) {
  AsyncMutex mutex(*loop_);
  const auto move_and_lock_again = [](AsyncMutex& of) -> Task<> {
    {
      auto first = co_await of.lock();
      auto second = std::move(first);
    }
    auto third = co_await of.lock();
  };
  run(*loop_, move_and_lock_again(mutex));
}

}  // namespace
}  // namespace berth
