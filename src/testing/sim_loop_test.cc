#include "testing/sim_loop.h"

#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/event.h"
#include "async/gate.h"
#include "testing/sim_host.h"

namespace berth {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::UnorderedElementsAre;

Task<> append(SimLoop& loop, std::string& to, char what, Duration after) {
  if (after != Duration{}) {
    co_await loop.sleep(after);
  } else {
    co_await loop.yield();
  }
  to += what;
}

Task<int> answer(SimLoop& loop) {
  co_await loop.sleep(milliseconds(5));
  co_return 42;
}

Task<> wait_for(Event& event) { co_await event.wait(); }

Task<> run_forever(SimLoop& loop) {
  for (;;) co_await loop.yield();
}

Task<> count_in_offload(SimLoop& loop, std::string& to, char what) {
  co_await offload(loop, [&] { to += what; });
}

TEST(SimLoop, RunsATaskToItsEndInVirtualTime) {
  SimHost host(1);
  SimLoop loop(host, 1);
  const Instant start = loop.now();
  const auto wall_start = loop.wall_time();
  EXPECT_EQ(loop.run_until_complete(answer(loop)), 42);
  EXPECT_GE(loop.now() - start, milliseconds(5));
  EXPECT_LT(loop.now() - start, milliseconds(7));
  EXPECT_EQ(loop.wall_time() - wall_start, loop.now() - start);
}

TEST(SimLoop, ResumesInTheOrderOfPostsAndTimersInTheirs) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SimHost host(seed);
    SimLoop loop(host, seed);
    Gate gate(loop);
    std::string order;
    for (const char what : {'a', 'b', 'c'}) gate.spawn(append(loop, order, what, {}));
    gate.spawn(append(loop, order, 'f', milliseconds(300)));
    gate.spawn(append(loop, order, 'd', milliseconds(100)));
    gate.spawn(append(loop, order, 'e', milliseconds(200)));
    ASSERT_TRUE(loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_EQ(order, "abcdef");
  }
}

TEST(SimLoop, WorkOfThePoolEndsInAnyOrder) {
  std::set<std::string> orders;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SimHost host(seed);
    SimLoop loop(host, seed);
    Gate gate(loop);
    std::string order;
    gate.spawn(count_in_offload(loop, order, 'a'));
    gate.spawn(count_in_offload(loop, order, 'b'));
    loop.run_until_complete(gate.drained());
    orders.insert(order);
  }
  EXPECT_THAT(orders, UnorderedElementsAre("ab", "ba"));
}

TEST(SimLoop, ReportsWhatCannotEnd) {
  SimHost host(1);
  SimLoop loop(host, 77);
  Event never(loop);
  Gate gate(loop);
  gate.spawn(wait_for(never));
  EXPECT_FALSE(loop.run_until([&] { return gate.size() == 0; }));
  EXPECT_EQ(loop.run_at_most(1000, wait_for(never)), false);
  gate.spawn(run_forever(loop));
  loop.set_steps_max(1000);
  EXPECT_FALSE(loop.run_until([&] { return gate.size() == 0; }));
  EXPECT_FALSE(loop.run_until_idle());
  EXPECT_THAT(loop.describe(), testing::HasSubstr("seed 77"));
  gate.abandon();
  loop.kill();
  EXPECT_TRUE(loop.run_until_idle());
}

TEST(SimLoopDeathTest, EndsTheProgramWithTheSeedWhenATaskHangs) {
  SimHost host(1);
  SimLoop loop(host, 77);
  Event never(loop);
  EXPECT_DEATH(loop.run_until_complete(wait_for(never)), "simulation hangs: seed 77");
}

TEST(SimLoop, ForgetsADeadProcessAndServesTheNext) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SimHost host(seed);
    SimLoop loop(host, seed);
    std::string order;
    {
      Gate gate(loop);
      gate.spawn(append(loop, order, 'x', milliseconds(1)));
      gate.spawn(append(loop, order, 'x', {}));
      gate.spawn(count_in_offload(loop, order, 'x'));
      gate.abandon();
      loop.kill();
    }
    ASSERT_TRUE(loop.run_until_idle());
    EXPECT_EQ(order, "");
    EXPECT_EQ(loop.run_until_complete(answer(loop)), 42);
  }
}

TEST(SimLoop, ATaskMayDieWhereItStands) {
  SimHost host(1);
  SimLoop loop(host, 1);
  EXPECT_FALSE(loop.run_at_most(1, answer(loop)).has_value());
  loop.kill();
  EXPECT_EQ(loop.run_at_most(10, answer(loop)), 42);
}

TEST(SimLoop, SeveralProcessesShareTimeAndDieAlone) {
  std::set<std::string> orders;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SimHost host(seed);
    SimHost other_host(seed);
    SimLoop loop(host, seed);
    SimLoop other(other_host, loop);
    Gate gate(loop);
    Gate other_gate(other);
    std::string order;
    gate.spawn(append(loop, order, 'a', {}));
    other_gate.spawn(append(other, order, 'b', {}));
    gate.spawn(append(loop, order, 'c', milliseconds(10)));
    other_gate.spawn(append(other, order, 'd', milliseconds(20)));
    ASSERT_TRUE(loop.run_until([&] { return order.size() == 2; }));
    orders.insert(order);
    gate.abandon();
    loop.kill();
    ASSERT_TRUE(loop.run_until([&] { return other_gate.size() == 0; }));
    EXPECT_EQ(order.substr(2), "d");
    EXPECT_EQ(loop.now(), other.now());
  }
  EXPECT_THAT(orders, UnorderedElementsAre("ab", "ba"));
}

Task<> write_some(File& file, std::uint64_t number, SimRandom& random) {
  std::string bytes(1 + random.below(9000), static_cast<char>('a' + number % 26));
  (void)co_await file.write(random.below(100'000), as_bytes(bytes));
  if (random.one_in(3)) (void)co_await file.sync();
}

std::uint64_t trace_of(std::uint64_t seed) {
  SimHost host(seed);
  SimLoop loop(host, seed);
  SimRandom random(seed);
  std::uint64_t content = 0;
  host.faults().add({.on = fault_on::write, .times = 3, .chance = 0.1});
  for (int life = 0; life < 3; ++life) {
    const auto directory = MUST(host.open_directory(loop, "vol"));
    auto file = MUST(directory->open("data", {.create = true, .lock = true}));
    MUST(directory->sync());
    {
      Gate gate(loop);
      for (std::uint64_t i = 0; i < 30; ++i) gate.spawn(write_some(*file, i, random));
      for (std::uint64_t i = random.below(100); i != 0; --i) loop.run_one_step();
      gate.abandon();
    }
    file.reset();
    loop.kill();
    if (random.one_in(2)) host.power_loss();
    for (const std::byte byte : MUST(host.peek("vol/data")))
      content = mix64(content ^ std::to_integer<unsigned>(byte));
  }
  return loop.trace_hash() ^ content;
}

TEST(SimLoop, OneSeedIsOneRun) {
  std::set<std::uint64_t> traces;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const std::uint64_t trace = trace_of(seed);
    EXPECT_EQ(trace_of(seed), trace) << "seed " << seed;
    traces.insert(trace);
  }
  EXPECT_EQ(traces.size(), 100U);
}

}  // namespace
}  // namespace berth
