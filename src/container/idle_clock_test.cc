#include "container/idle_clock.h"

#include <gtest/gtest.h>

namespace berth::container {
namespace {

using namespace std::chrono_literals;

constexpr Instant begin{1h};

TEST(IdleClock, CountsFromTheLastUse) {
  IdleClock clock(begin);
  EXPECT_EQ(clock.idle(begin + 5s), 5s);
  clock.touch(begin + 7s);
  EXPECT_EQ(clock.idle(begin + 7s), 0s);
  EXPECT_EQ(clock.idle(begin + 17s), 10s);
}

TEST(IdleClock, TimerTicksAreNoUse) {
  IdleClock clock(begin);
  for (int i = 0; i <= 10; ++i) clock.sample(begin + i * 2s, 3s + i * 20ms);
  EXPECT_EQ(clock.idle(begin + 20s), 20s);
}

TEST(IdleClock, AGuestThatComputesIsInUse) {
  IdleClock clock(begin);
  clock.sample(begin, 3s);
  clock.sample(begin + 2s, 3s + 100ms);
  EXPECT_EQ(clock.idle(begin + 2s), 0s);
  clock.sample(begin + 4s, 3s + 110ms);
  EXPECT_EQ(clock.idle(begin + 4s), 2s);
}

TEST(IdleClock, WhatWasTakenWhileNobodyLookedIsNoUse) {
  IdleClock clock(begin);
  clock.sample(begin, 1s);
  clock.forget_sample();
  clock.sample(begin + 2s, 2s);
  EXPECT_EQ(clock.idle(begin + 2s), 2s);
}

}  // namespace
}  // namespace berth::container
