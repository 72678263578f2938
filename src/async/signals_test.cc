#include "async/signals.h"

#include <array>
#include <csignal>

#include <pthread.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/test_support.h"

namespace berth {
namespace {

constexpr std::array wanted{SIGUSR1, SIGUSR2};

class SignalsTest : public LoopTest {};

bool is_blocked(int number) {
  sigset_t mask;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  return ::sigismember(&mask, number) == 1;
}

TEST_F(SignalsTest, GivesTheNumberOfASignalThatCameBefore) {
  const auto signals = MUST(Signals::create(*loop_, wanted));
  ::pthread_kill(::pthread_self(), SIGUSR2);
  EXPECT_EQ(run(*loop_, signals->next()).value(), SIGUSR2);
}

TEST_F(SignalsTest, WaitsForASignalOfTheProcess) {
  const auto signals = MUST(Signals::create(*loop_, wanted));
  const auto wait = [](UringLoop& loop, Signals& from) -> Task<int> {
    Gate gate(loop);
    const auto raise_later = [](Loop& on) -> Task<> {
      co_await on.yield();
      ::kill(::getpid(), SIGUSR1);
    };
    gate.spawn(raise_later(loop));
    const auto number = co_await from.next();
    co_await gate.drained();
    co_return number.value();
  };
  EXPECT_EQ(run(*loop_, wait(*loop_, *signals)), SIGUSR1);
}

TEST_F(SignalsTest, CloseEndsAPendingWait) {
  const auto signals = MUST(Signals::create(*loop_, wanted));
  const auto close = [](Loop& loop, Signals& which) -> Task<> {
    co_await loop.yield();
    which.close();
  };
  Gate gate(*loop_);
  gate.spawn(close(*loop_, *signals));
  EXPECT_EQ(run(*loop_, signals->next()).error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(run(*loop_, signals->next()).error().kind(), ErrorKind::cancelled);
  run(*loop_, gate.drained());
}

TEST_F(SignalsTest, TheMaskComesBack) {
  ASSERT_FALSE(is_blocked(SIGUSR1));
  {
    const auto signals = MUST(Signals::create(*loop_, wanted));
    EXPECT_TRUE(is_blocked(SIGUSR1));
  }
  EXPECT_FALSE(is_blocked(SIGUSR1));
}

TEST_F(SignalsTest, PoolThreadsTakeNoSignals) {
  const auto blocked_there = [](Loop& loop) -> Task<bool> {
    co_return co_await offload(loop, [] { return is_blocked(SIGTERM); });
  };
  EXPECT_TRUE(run(*loop_, blocked_there(*loop_)));
}

}  // namespace
}  // namespace berth
