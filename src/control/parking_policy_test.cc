#include "control/parking_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace berth::control {
namespace {

using namespace std::chrono_literals;
using machine::PauseLevel;
using testing::ElementsAre;
using testing::IsEmpty;
using Candidate = ParkingPolicy::Candidate;
using Decision = ParkingPolicy::Decision;

constexpr Instant begin{1h};

ParkingConfiguration three_steps() {
  return {
      .steps = {{PauseLevel::frozen, 1min}, {PauseLevel::trimmed, 5min}, {PauseLevel::parked, 1h}}};
}
ParkingConfiguration under_pressure() {
  return {.steps = {}, .pressure = 10, .pressure_interval = 5s};
}
std::vector<Decision> decide(ParkingPolicy& policy, std::vector<Candidate> candidates,
                             std::optional<double> pressure = std::nullopt, Duration at = 0s,
                             bool has_swap = false) {
  return policy.decide(std::move(candidates), pressure, has_swap, begin + at);
}

TEST(ParkingPolicy, PausesNobodyUnlessItIsTold) {
  ParkingPolicy policy({});
  EXPECT_THAT(decide(policy, {{.name = "a", .idle = 1000h}}, 100), IsEmpty());
  EXPECT_FALSE(policy.concerns(""));
  EXPECT_FALSE(policy.concerns("never"));
  EXPECT_TRUE(policy.concerns("5m"));
}

TEST(ParkingPolicy, EachTimeHasItsLevel) {
  ParkingPolicy policy(three_steps());
  EXPECT_THAT(decide(policy, {{.name = "a", .idle = 59s}}), IsEmpty());
  EXPECT_THAT(decide(policy, {{.name = "a", .idle = 60s}}),
              ElementsAre(Decision{"a", PauseLevel::frozen, 1min}));
  EXPECT_THAT(decide(policy, {{.name = "a", .level = PauseLevel::frozen, .idle = 4min}}),
              IsEmpty());
  EXPECT_THAT(decide(policy, {{.name = "a", .level = PauseLevel::frozen, .idle = 6min}}),
              ElementsAre(Decision{"a", PauseLevel::trimmed, 5min}));
  EXPECT_THAT(decide(policy, {{.name = "a", .level = PauseLevel::parked, .idle = 48h}}), IsEmpty());
}

TEST(ParkingPolicy, OneThatWasNotLookedAtForLongGoesToItsLevelAtOnce) {
  ParkingPolicy policy(three_steps());
  EXPECT_THAT(decide(policy, {{.name = "a", .idle = 2h}}),
              ElementsAre(Decision{"a", PauseLevel::parked, 1h}));
}

TEST(ParkingPolicy, OneThatCannotGoAsDeepGoesAsDeepAsItCan) {
  ParkingPolicy policy(three_steps());
  EXPECT_THAT(decide(policy, {{.name = "a", .idle = 2h, .deepest = PauseLevel::trimmed}}),
              ElementsAre(Decision{"a", PauseLevel::trimmed, 1h}));
  EXPECT_THAT(decide(policy, {{.name = "a",
                               .level = PauseLevel::trimmed,
                               .idle = 2h,
                               .deepest = PauseLevel::trimmed}}),
              IsEmpty());
  ParkingPolicy pressed(under_pressure());
  EXPECT_THAT(decide(pressed, {{.name = "a", .idle = 1min, .deepest = PauseLevel::trimmed}}, 50),
              ElementsAre(Decision{"a", PauseLevel::trimmed, pressure_idle_min, true}));
}

TEST(ParkingPolicy, OneThatSomebodyHasPausedDeeperStaysThere) {
  ParkingPolicy policy(three_steps());
  EXPECT_THAT(decide(policy, {{.name = "a", .level = PauseLevel::parked, .idle = 2min}}),
              IsEmpty());
}

TEST(ParkingPolicy, TheLongestIdleComesFirst) {
  ParkingPolicy policy(three_steps());
  EXPECT_THAT(
      decide(
          policy,
          {{.name = "a", .idle = 61s}, {.name = "b", .idle = 10min}, {.name = "c", .idle = 2min}}),
      ElementsAre(Decision{"b", PauseLevel::trimmed, 5min}, Decision{"c", PauseLevel::frozen, 1min},
                  Decision{"a", PauseLevel::frozen, 1min}));
}

TEST(ParkingPolicy, AContainerMayHaveATimeOfItsOwnOrNone) {
  ParkingPolicy policy(three_steps());
  EXPECT_THAT(decide(policy, {{.name = "never", .idle = 9h, .park_after = "never"},
                              {.name = "own", .idle = 31s, .park_after = "30s"}}),
              ElementsAre(Decision{"own", PauseLevel::parked, 30s}));
}

TEST(ParkingPolicy, PressureTakesTheLongestIdleAloneAndThenWaits) {
  ParkingPolicy policy(under_pressure());
  const std::vector<Candidate> idle = {{.name = "a", .idle = 20s},
                                       {.name = "b", .idle = 30s},
                                       {.name = "busy", .idle = 9s},
                                       {.name = "out", .idle = 99h, .park_after = "never"}};
  EXPECT_THAT(decide(policy, idle, 10.0), IsEmpty());  // not above it
  EXPECT_THAT(decide(policy, idle, 10.1),
              ElementsAre(Decision{"b", PauseLevel::parked, pressure_idle_min, true}));
  EXPECT_THAT(decide(policy, idle, 50, 4s), IsEmpty());
  const std::vector<Candidate> rest = {{.name = "a", .idle = 25s},
                                       {.name = "b", .level = PauseLevel::parked, .idle = 35s}};
  EXPECT_THAT(decide(policy, rest, 50, 5s),
              ElementsAre(Decision{"a", PauseLevel::parked, pressure_idle_min, true}));
  EXPECT_THAT(decide(policy, {{.name = "b", .level = PauseLevel::parked, .idle = 1h}}, 90, 20s),
              IsEmpty());
}

TEST(ParkingPolicy, PressureTrimsFirstWhereThereIsSwap) {
  ParkingPolicy policy(under_pressure());
  EXPECT_THAT(
      decide(policy, {{.name = "a", .level = PauseLevel::frozen, .idle = 1min}}, 20, 0s, true),
      ElementsAre(Decision{"a", PauseLevel::trimmed, pressure_idle_min, true}));
  EXPECT_THAT(
      decide(policy, {{.name = "a", .level = PauseLevel::trimmed, .idle = 1min}}, 20, 5s, true),
      ElementsAre(Decision{"a", PauseLevel::parked, pressure_idle_min, true}));
}

TEST(ParkingPolicy, WithoutAPressureToGoByNobodyIsPausedForIt) {
  ParkingPolicy policy(under_pressure());
  EXPECT_THAT(decide(policy, {{.name = "a", .idle = 1h}}, std::nullopt), IsEmpty());
}

TEST(ParkingPolicy, OneThatCannotBePausedIsLeftAloneForAWhileAndOthersAreNot) {
  ParkingPolicy policy(under_pressure());
  const std::vector<Candidate> idle = {{.name = "a", .idle = 20s}, {.name = "b", .idle = 30s}};
  policy.note_failure({"b", PauseLevel::parked, pressure_idle_min, true}, begin);
  EXPECT_THAT(decide(policy, idle, 20, 1s),
              ElementsAre(Decision{"a", PauseLevel::parked, pressure_idle_min, true}));
  EXPECT_THAT(decide(policy, {{.name = "b", .idle = 2min}}, 20, 61s),
              ElementsAre(Decision{"b", PauseLevel::parked, pressure_idle_min, true}));
}

TEST(ParkingPolicy, AFailureAtOneLevelIsNoneAtADeeperOne) {
  ParkingPolicy policy(three_steps());
  policy.note_failure({"a", PauseLevel::trimmed, 5min}, begin);
  EXPECT_THAT(decide(policy, {{.name = "a", .level = PauseLevel::frozen, .idle = 6min}}),
              IsEmpty());
  EXPECT_THAT(decide(policy, {{.name = "a", .level = PauseLevel::frozen, .idle = 1h}}),
              ElementsAre(Decision{"a", PauseLevel::parked, 1h}));
}

TEST(ParkingPolicy, LooksOftenEnoughForTheShortestTime) {
  EXPECT_EQ(ParkingPolicy(three_steps()).interval({""}), 5s);
  EXPECT_EQ(ParkingPolicy(three_steps()).interval({"", "4s"}), 1s);
  EXPECT_EQ(ParkingPolicy(three_steps()).interval({"1ms"}), 200ms);
  EXPECT_EQ(ParkingPolicy(under_pressure()).interval({}), 1s);
}

TEST(PressureFile, HasItsFirstLineRead) {
  EXPECT_EQ(parse_pressure("some avg10=12.50 avg60=3.00 avg300=1.00 total=1943621"), 12.5);
  for (const char* text :
       {"", "full avg10=1.00 avg60=0.00", "some avg10=", "some avg10=x", "some avg10=-1"})
    EXPECT_EQ(parse_pressure(text), std::nullopt) << text;
}

}  // namespace
}  // namespace berth::control
