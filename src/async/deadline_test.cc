#include "async/deadline.h"

#include <chrono>
#include <memory>

#include <gtest/gtest.h>

#include "async/event.h"
#include "async/test_support.h"

namespace berth {
namespace {

class DeadlineTest : public LoopTest {};

TEST_F(DeadlineTest, CallsOnceWhenTheTimeHasCome) {
  int called = 0;
  const auto wait = [](Loop& loop, int& calls) -> Task<> {
    Event event(loop);
    Deadline deadline(loop, std::chrono::milliseconds(1), [&] {
      ++calls;
      event.notify_all();
    });
    co_await event.wait();
    EXPECT_TRUE(deadline.expired());
    co_await deadline.stop();
  };
  run(*loop_, wait(*loop_, called));
  EXPECT_EQ(called, 1);
}

TEST_F(DeadlineTest, DoesNotCallOnceStopped) {
  int called = 0;
  const auto stop = [](Loop& loop, Duration after, int& calls) -> Task<> {
    Deadline deadline(loop, after, [&] { ++calls; });
    co_await deadline.stop();
    EXPECT_FALSE(deadline.expired());
  };
  run(*loop_, stop(*loop_, std::chrono::hours(1), called));
  run(*loop_, stop(*loop_, Duration::zero(), called));
  EXPECT_EQ(called, 0);
}

TEST_F(DeadlineTest, StoppingOneThatHasFiredButNotRunIsSafe) {
  int called = 0;
  const auto race = [](Loop& loop, int& calls) -> Task<> {
    Deadline deadline(loop, Duration::zero(), [&] { ++calls; });
    // Both are due now; this one was added later and so runs after the deadline's coroutine has
    // been posted.
    co_await loop.sleep(Duration::zero());
    co_await deadline.stop();
  };
  for (int i = 0; i < 100; ++i) run(*loop_, race(*loop_, called));
  EXPECT_LE(called, 100);
}

}  // namespace
}  // namespace berth
