// QmpClient over simulated connections: pieces of any size, delays, an end at any point.
//
// Invariant: each command ends once, with its own answer or with a reason why there is none.

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "machine/vm/fake_qmp.h"
#include "machine/vm/qmp_client.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"
#include "testing/sim_random.h"
#include "testing/sim_stream.h"

namespace berth::machine {
namespace {

using namespace std::chrono_literals;

struct SimulatedRun {
  std::size_t answered = 0;
  std::size_t refused = 0;
  std::size_t timed_out = 0;
  std::size_t disconnected = 0;
  std::size_t events = 0;
};

Task<> answer_everything(FakeQmp& qemu, SimLoop& loop, SimRandom& random, SimLink& link,
                         std::uint64_t cut_after) {
  if (!co_await qemu.accept_capabilities()) co_return;
  std::vector<Json> waiting;
  for (std::uint64_t step = 0;; ++step) {
    if (step == cut_after) {
      link.cut();
      co_return;
    }
    auto command = co_await qemu.next();
    if (!command) co_return;
    waiting.push_back(std::move(*command));
    if (random.chance(0.3)) (void)co_await qemu.say("{\"event\": \"NEWS\", \"data\": {}}\r\n");
    if (random.chance(0.3)) continue;  // answers it later
    if (random.chance(0.1)) co_await loop.sleep(2s);
    while (!waiting.empty()) {
      const std::size_t which = random.below(waiting.size());
      const Json chosen = waiting[which];
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(which));
      const std::string number = chosen["arguments"]["number"].dump();
      if (random.chance(0.2)) {
        (void)co_await qemu.say(
            fmt::format(R"({{"id": {}, "error": {{"class": "GenericError", "desc": "{}"}}}})"
                        "\r\n",
                        chosen["id"].dump(), number));
      } else {
        (void)co_await qemu.answer(chosen["id"], number);
      }
    }
  }
}

Task<> ask_numbers(QmpClient& client, SimLoop& loop, SimRandom& random, int base,
                   SimulatedRun& seen) {
  for (int number = base; number < base + 20; ++number) {
    const auto answer = co_await client.execute("ask", {{"number", number}}, 1s);
    if (answer) {
      EXPECT_EQ(*answer, number);
      ++seen.answered;
    } else if (answer.error().kind() == ErrorKind::precondition) {
      EXPECT_THAT(answer.error().message(), testing::EndsWith(fmt::format(": {}", number)));
      ++seen.refused;
    } else if (answer.error().kind() == ErrorKind::timed_out) {
      ++seen.timed_out;
    } else {
      EXPECT_EQ(answer.error().kind(), ErrorKind::disconnected) << answer.error().message();
      ++seen.disconnected;
    }
    if (random.chance(0.2)) co_await loop.sleep(std::chrono::milliseconds(random.below(50)));
  }
}

Task<> run_simulated(SimLoop& loop, SimRandom& random, SimulatedRun& seen) {
  const auto link = SimLink::make(loop, loop);
  FakeQmp qemu(link->take_second());
  Gate gate(loop);
  const std::uint64_t cut_after = random.chance(0.5) ? random.below(60) : ~0ULL;
  gate.spawn(answer_everything(qemu, loop, random, *link, cut_after));
  auto client = co_await QmpClient::start(loop, link->take_first(), 60s);
  if (!client) {
    EXPECT_EQ(cut_after, 0U) << client.error().message();
    co_await gate.drained();
    co_return;
  }
  int closed = 0;
  (*client)->set_handlers([&](const std::string&, const Json&) { ++seen.events; },
                          [&] { ++closed; });
  Gate askers(loop);
  for (int asker = 0; asker < 3; ++asker)
    askers.spawn(ask_numbers(**client, loop, random, asker * 100, seen));
  if (random.chance(0.2)) {
    co_await loop.sleep(std::chrono::milliseconds(random.below(3000)));
  } else {
    co_await askers.drained();
  }
  co_await (*client)->close();
  co_await askers.drained();
  EXPECT_LE(closed, 1);
  co_await gate.drained();
}

TEST(QmpClientSimulationTest, EveryCommandEndsOnceWithItsOwnAnswerOrAReason) {
  SimulatedRun seen;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    SimHost host(seed);
    SimLoop loop(host, seed);
    SimRandom random(seed);
    loop.run_until_complete(run_simulated(loop, random, seen));
    if (testing::Test::HasFailure()) return;
  }
  // What it is about has happened, often.
  EXPECT_GT(seen.answered, 1000U);
  EXPECT_GT(seen.refused, 100U);
  EXPECT_GT(seen.timed_out, 100U);
  EXPECT_GT(seen.disconnected, 100U);
  EXPECT_GT(seen.events, 1000U);
}

}  // namespace
}  // namespace berth::machine
