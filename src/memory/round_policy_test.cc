#include "memory/round_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace berth::memory {
namespace {

using Step = RoundDecision::Step;
using std::chrono::milliseconds;

Duration seconds(double value) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(value));
}

/// A machine that writes its working set over and over, as random pages, and a host that copies.
struct Model {
  std::uint64_t working_set = 256 * MiB;
  double write_rate = 100.0 * MiB;  // bytes a second, while it runs at full speed
  double copy_rate = 1000.0 * MiB;
  Duration scan = milliseconds(2);
  bool can_be_slowed = true;

  std::uint64_t written_in(Duration time, unsigned percent) const {
    const double rate = write_rate * (can_be_slowed ? percent / 100.0 : 1.0);
    const auto all = static_cast<double>(working_set);
    const double written = rate * std::chrono::duration<double>(time).count();
    return static_cast<std::uint64_t>(all * (1 - std::exp(-written / all)));
  }
};

struct Copying {
  RoundDecision last;
  unsigned rounds = 0;
  Duration time{};
  std::uint64_t really_last_bytes = 0;
  std::vector<unsigned> percents;  // the different ones, in order
};

Copying run(const Model& model, RoundLimits limits = {}) {
  constexpr unsigned rounds_of_model_max = 1000;
  RoundPolicy policy(limits);
  Copying result;
  unsigned percent = 100;
  // While everything was copied.
  Duration since = seconds(1024.0 * MiB / model.copy_rate);
  while (result.rounds < rounds_of_model_max) {
    ++result.rounds;
    result.time += since;
    const std::uint64_t bytes = model.written_in(since, percent);
    const Duration copying = model.scan + seconds(static_cast<double>(bytes) / model.copy_rate);
    result.last = policy.next({.bytes_dirty = bytes, .since_last_take = since, .copying = copying});
    EXPECT_LE(result.last.percent, percent);
    EXPECT_GE(result.last.percent, std::min(100U, limits.slowest_percent));
    EXPECT_EQ(result.last.step == Step::slow_down, result.last.percent < percent);
    if (result.last.percent < percent) result.percents.push_back(result.last.percent);
    percent = result.last.percent;
    result.really_last_bytes = model.written_in(copying + limits.stopping, percent);
    if (result.last.step == Step::stop_now) return result;
    since = copying;
  }
  ADD_FAILURE() << "it never ends";
  return result;
}

Duration real_pause(const Copying& copying, const RoundLimits& limits = {}) {
  return limits.pause_least + seconds(static_cast<double>(copying.really_last_bytes) /
                                      static_cast<double>(limits.stage_bytes_per_second));
}

TEST(RoundPolicy, StopsAtOnceAMachineThatWritesNothing) {
  const Copying quiet = run({.write_rate = 0});
  EXPECT_EQ(quiet.rounds, 1U);
  EXPECT_TRUE(quiet.last.within_goal);
  EXPECT_EQ(quiet.last.last_round_bytes, 0U);
  EXPECT_EQ(quiet.last.pause, RoundLimits().pause_least);
}

TEST(RoundPolicy, GoesOnWhileThePauseGetsReallyShorter) {
  for (const double rate : {10.0, 100.0, 400.0, 700.0}) {
    const Copying busy = run({.working_set = 512 * MiB, .write_rate = rate * MiB});
    EXPECT_TRUE(busy.last.within_goal) << rate;
    EXPECT_TRUE(busy.percents.empty()) << rate;
    EXPECT_LE(busy.rounds, 12U) << rate;
    EXPECT_LE(real_pause(busy), rate <= 400 ? milliseconds(15) : RoundLimits().pause_goal) << rate;
  }
}

TEST(RoundPolicy, SlowsDownAMachineThatWritesFasterThanIsCopied) {
  const Copying fast = run({.write_rate = 3000.0 * MiB});
  EXPECT_EQ(fast.percents, (std::vector<unsigned>{50, 25}));
  EXPECT_TRUE(fast.last.within_goal);
  EXPECT_LE(real_pause(fast), RoundLimits().pause_goal);
}

TEST(RoundPolicy, NeverSlowsPastItsLimitAndSaysThatTheGoalIsNotKept) {
  const Copying hopeless = run({.working_set = 900 * MiB, .write_rate = 1e6 * MiB});
  EXPECT_EQ(hopeless.percents, (std::vector<unsigned>{50, 25, 20}));
  EXPECT_EQ(hopeless.last.step, Step::stop_now);
  EXPECT_FALSE(hopeless.last.within_goal);
  EXPECT_GT(hopeless.last.pause, RoundLimits().pause_goal);
  EXPECT_LE(hopeless.rounds, 12U);
}

TEST(RoundPolicy, AMachineThatMayNotBeSlowedIsNot) {
  const Copying fixed = run({.write_rate = 1e6 * MiB}, {.slowest_percent = 100});
  EXPECT_TRUE(fixed.percents.empty());
  EXPECT_FALSE(fixed.last.within_goal);
  EXPECT_LE(fixed.rounds, 5U);
}

TEST(RoundPolicy, SlowingThatDoesNotHelpEndsToo) {
  const Copying stubborn = run({.write_rate = 1e6 * MiB, .can_be_slowed = false});
  EXPECT_FALSE(stubborn.last.within_goal);
  EXPECT_LE(stubborn.rounds, RoundLimits().rounds_max);
}

TEST(RoundPolicy, KeepsTheLimitOfRounds) {
  // Each round a little smaller than the one before, without end.
  RoundPolicy policy({.rounds_max = 7});
  double bytes = 100.0 * GiB;
  for (unsigned round = 1; round <= 7; ++round) {
    const auto decision = policy.next({.bytes_dirty = static_cast<std::uint64_t>(bytes),
                                       .since_last_take = milliseconds(1000),
                                       .copying = milliseconds(1000)});
    EXPECT_EQ(decision.step, round < 7 ? Step::another_round : Step::stop_now);
    bytes *= 0.7;
  }
}

TEST(RoundPolicy, KeepsTheLimitOfTime) {
  const Copying slow =
      run({.working_set = 64 * GiB, .write_rate = 90.0 * MiB, .copy_rate = 100.0 * MiB},
          {.time_max = std::chrono::seconds(30), .slowest_percent = 100});
  EXPECT_FALSE(slow.last.within_goal);
  EXPECT_LE(slow.time, std::chrono::seconds(45));
}

TEST(RoundPolicy, TheLastRoundFitsIntoWhatIsPreparedForIt) {
  const RoundLimits limits{.pause_goal = std::chrono::seconds(10), .staging_max = 2 * MiB};
  const Copying run_of_it = run({.working_set = 512 * MiB, .write_rate = 400.0 * MiB}, limits);
  EXPECT_TRUE(run_of_it.last.within_goal);
  EXPECT_LE(run_of_it.really_last_bytes, limits.staging_max);
}

TEST(RoundPolicy, SurvivesNumbersThatMakeNoSense) {
  RoundPolicy policy({});
  constexpr auto far = Duration::max();
  for (const Round& round :
       {Round{}, Round{.since_last_take = far}, Round{.since_last_take = far},
        Round{.bytes_dirty = UINT64_MAX},
        Round{.bytes_dirty = UINT64_MAX, .since_last_take = Duration(1), .copying = far},
        Round{.bytes_dirty = 1, .since_last_take = Duration(-5), .copying = Duration(-5)},
        Round{.bytes_dirty = 1, .since_last_take = Duration(5), .copying = Duration(-5)}}) {
    const auto decision = policy.next(round);
    EXPECT_GE(decision.pause, RoundLimits().pause_least);
    EXPECT_LE(decision.percent, 100U);
  }
}

}  // namespace
}  // namespace berth::memory
