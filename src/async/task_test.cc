#include "async/task.h"

#include <array>
#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "async/test_support.h"

namespace berth {
namespace {

class TaskTest : public LoopTest {};

Task<int> give(int value) { co_return value; }

Task<int> count_up(int count) {
  int sum = 0;
  for (int i = 0; i < count; ++i) sum += co_await give(1);
  co_return sum;
}

Task<int> nest(int depth) {
  if (depth == 0) co_return 0;
  co_return 1 + co_await nest(depth - 1);
}

Task<int> nest_and_wait(Loop& loop, int depth) {
  if (depth == 0) {
    co_await loop.yield();
    co_return 0;
  }
  co_return 1 + co_await nest_and_wait(loop, depth - 1);
}

Task<> note(bool& ran) {
  ran = true;
  co_return;
}

Task<std::unique_ptr<int>> give_owned(std::unique_ptr<int> value) { co_return std::move(value); }

Task<Result<int>> halve(int value) {
  if (value % 2 != 0) co_return failure(ErrorKind::invalid_argument, "odd");
  co_return value / 2;
}

Task<Result<int>> quarter(int value) {
  const int half = CO_TRY(co_await halve(value));
  co_return CO_TRY(co_await halve(half));
}

TEST_F(TaskTest, GivesItsResultToWhoAwaitsIt) { EXPECT_EQ(run(*loop_, give(7)), 7); }

TEST_F(TaskTest, AMillionAwaitsThatEndAtOnceDoNotGrowTheStack) {
  EXPECT_EQ(run(*loop_, count_up(1'000'000)), 1'000'000);
}

TEST_F(TaskTest, DeepChainsStartAndEndWithoutGrowingTheStack) {
  EXPECT_EQ(run(*loop_, nest(100'000)), 100'000);
  EXPECT_EQ(run(*loop_, nest_and_wait(*loop_, 100'000)), 100'000);
}

TEST_F(TaskTest, DoesNothingUntilAwaited) {
  bool ran = false;
  {
    const Task<> task = note(ran);
  }
  EXPECT_FALSE(ran);
  run(*loop_, note(ran));
  EXPECT_TRUE(ran);
}

TEST_F(TaskTest, MovesResultsThatCannotBeCopied) {
  EXPECT_EQ(*run(*loop_, give_owned(std::make_unique<int>(5))), 5);
}

TEST_F(TaskTest, CoTryPassesErrorsOn) {
  EXPECT_EQ(run(*loop_, quarter(12)).value(), 3);
  EXPECT_EQ(run(*loop_, quarter(6)).error().message(), "odd");
}

TEST_F(TaskTest, AssigningToATaskDestroysWhatItHadNotDone) {
  auto counted = std::make_shared<int>(0);
  const auto hold = [](std::shared_ptr<int> held) -> Task<> {
    ++*held;
    co_return;
  };
  Task<> task = hold(counted);
  EXPECT_EQ(counted.use_count(), 2);
  task = hold(nullptr);
  EXPECT_EQ(counted.use_count(), 1);
  EXPECT_EQ(*counted, 0);
}

TEST_F(TaskTest, LocalsAreDestroyedBeforeTheAwaiterGoesOn) {
  auto held = std::make_shared<int>(0);
  const auto use = [](std::shared_ptr<int> value) -> Task<long> { co_return value.use_count(); };
  const auto outer = [](auto inner, std::shared_ptr<int> value) -> Task<long> {
    co_await inner(value);
    co_return value.use_count();
  };
  EXPECT_EQ(run(*loop_, outer(use, held)), 2) << "the inner coroutine still holds a reference";
}

TEST_F(TaskTest, LargeFramesWorkToo) {
  const auto large = [](Loop& loop) -> Task<int> {
    std::array<int, 5000> numbers{};
    numbers[4999] = 3;
    co_await loop.yield();
    co_return numbers[4999] + numbers[0];
  };
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run(*loop_, large(*loop_)), 3);
}

}  // namespace
}  // namespace berth
