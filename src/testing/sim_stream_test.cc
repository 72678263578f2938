#include "testing/sim_stream.h"

#include <array>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"
#include "testing/sim_network.h"

namespace berth {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::UnorderedElementsAre;

struct Pair {
  explicit Pair(std::uint64_t seed, SimLinkOptions options = {}) : host(seed), loop(host, seed) {
    link = SimLink::make(loop, loop, options);
    first = link->take_first();
    second = link->take_second();
  }
  SimHost host;
  SimLoop loop;
  std::shared_ptr<SimLink> link;
  std::unique_ptr<Stream> first;
  std::unique_ptr<Stream> second;
};

std::string text_of(std::uint64_t seed, std::size_t length) {
  SimRandom random(seed);
  std::string text(length, '\0');
  random.fill({reinterpret_cast<std::byte*>(text.data()), text.size()});
  return text;
}

struct Received {
  std::string text;
  std::size_t reads = 0;
  bool ended = false;
  std::optional<ErrorKind> error;
};

Task<> receive(Stream& stream, Received& received) {
  std::array<std::byte, 4096> buffer{};
  for (;;) {
    const auto got = co_await stream.read_some(buffer);
    if (!got) {
      received.error = got.error().kind();
      co_return;
    }
    if (*got == 0) {
      received.ended = true;
      co_return;
    }
    ++received.reads;
    received.text += as_text(Bytes(buffer).first(*got));
  }
}

Task<Result<void>> send(Stream& stream, std::string text) {
  const std::array<Bytes, 2> parts{as_bytes(text).first(text.size() / 3),
                                   as_bytes(text).subspan(text.size() / 3)};
  co_return co_await stream.write_all(parts);
}

Task<> send_and_shut_down(Stream& stream, std::string text) {
  MUST(co_await send(stream, std::move(text)));
  stream.shutdown();
}

TEST(SimStream, DeliversAllBytesInOrderAndThenTheEnd) {
  bool fragmented = false;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Pair pair(seed, {.window_bytes = 10'000});
    const std::string text = text_of(seed, seed * 137);
    Received received;
    Gate gate(pair.loop);
    gate.spawn(receive(*pair.second, received));
    gate.spawn(send_and_shut_down(*pair.first, text));
    ASSERT_TRUE(pair.loop.run_until([&] { return gate.size() == 0; })) << pair.loop.describe();
    EXPECT_EQ(received.text, text);
    EXPECT_TRUE(received.ended);
    fragmented = fragmented || received.reads > 2 * (text.size() / 4096 + 1);
  }
  EXPECT_TRUE(fragmented);
}

TEST(SimStream, AWriterWaitsForTheWindow) {
  Pair pair(1, {.window_bytes = 1000});
  EXPECT_FALSE(
      pair.loop.run_at_most(10'000, send(*pair.first, std::string(1001, 'x'))).has_value());
}

TEST(SimStream, ACutLosesAPartOfWhatWasOnItsWay) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Pair pair(seed);
    const std::string text = text_of(seed, 5000);
    Received received;
    Received returned;
    Gate gate(pair.loop);
    gate.spawn(receive(*pair.second, received));
    gate.spawn(receive(*pair.first, returned));
    MUST(pair.loop.run_until_complete(send(*pair.first, text)));
    pair.link->cut();
    ASSERT_TRUE(pair.loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_EQ(received.error, ErrorKind::disconnected);
    EXPECT_EQ(returned.error, ErrorKind::disconnected);
    EXPECT_EQ(received.text, text.substr(0, received.text.size()));
    outcomes.insert(received.text.empty() ? "nothing" : received.text == text ? "all" : "a part");
    EXPECT_EQ(pair.loop.run_until_complete(send(*pair.first, "x")).error().kind(),
              ErrorKind::disconnected);
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("nothing", "a part", "all"));
}

TEST(SimStream, NothingArrivesDuringAStall) {
  Pair pair(1);
  pair.link->stall(seconds(10));
  Received received;
  Gate gate(pair.loop);
  gate.spawn(receive(*pair.second, received));
  gate.spawn(send_and_shut_down(*pair.first, "hello"));
  pair.loop.run_until_complete(
      [](SimLoop& loop) -> Task<> { co_await loop.sleep(seconds(9)); }(pair.loop));
  EXPECT_EQ(received.text, "");
  EXPECT_FALSE(received.ended);
  ASSERT_TRUE(pair.loop.run_until([&] { return gate.size() == 0; }));
  EXPECT_EQ(received.text, "hello");
}

TEST(SimStream, ShutdownEndsWhatIsPendingAndTellsThePeer) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Pair pair(seed, {.window_bytes = 100});
    Received here;
    Received there;
    std::optional<ErrorKind> write_error;
    Gate gate(pair.loop);
    gate.spawn(receive(*pair.first, here));
    const auto write = [](Stream& stream, std::optional<ErrorKind>& error) -> Task<> {
      const auto sent = co_await send(stream, std::string(1000, 'x'));
      if (!sent) error = sent.error().kind();
    };
    gate.spawn(write(*pair.first, write_error));
    pair.loop.run_until_complete(
        [](SimLoop& loop) -> Task<> { co_await loop.sleep(milliseconds(1)); }(pair.loop));
    pair.first->shutdown();
    pair.first->shutdown();
    ASSERT_TRUE(pair.loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_EQ(here.error, ErrorKind::disconnected);
    EXPECT_EQ(write_error, ErrorKind::disconnected);
    gate.spawn(receive(*pair.second, there));
    ASSERT_TRUE(pair.loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_TRUE(there.ended);
    EXPECT_EQ(there.text, std::string(100, 'x'));
    EXPECT_EQ(pair.loop.run_until_complete(send(*pair.second, "x")).error().kind(),
              ErrorKind::disconnected);
  }
}

Task<> echo_all(Stream& stream) {
  Received received;
  co_await receive(stream, received);
  MUST(co_await send(stream, received.text));
  MUST(co_await stream.finish_writing());
}

Task<> send_and_finish(Stream& stream, std::string text) {
  MUST(co_await send(stream, std::move(text)));
  MUST(co_await stream.finish_writing());
}

TEST(SimStream, ReadingGoesOnAfterWritingIsFinished) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Pair pair(seed);
    const std::string text = text_of(seed, 3000);
    Received echoed;
    Gate gate(pair.loop);
    gate.spawn(echo_all(*pair.second));
    gate.spawn(receive(*pair.first, echoed));
    gate.spawn(send_and_finish(*pair.first, text));
    ASSERT_TRUE(pair.loop.run_until([&] { return gate.size() == 0; })) << pair.loop.describe();
    EXPECT_EQ(echoed.text, text);
    EXPECT_TRUE(echoed.ended);
    pair.second->shutdown();
    EXPECT_EQ(pair.loop.run_until_complete(send(*pair.first, "x")).error().kind(),
              ErrorKind::disconnected);
  }
}

TEST(SimStream, TheDeathOfOneProcessIsTheEndOfTheStreamForTheOther) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SimHost host(seed);
    SimLoop client_loop(host, seed);
    SimLoop server_loop(host, client_loop);
    const auto link = SimLink::make(client_loop, server_loop);
    auto client = link->take_first();
    auto server = link->take_second();
    Received at_client;
    Received at_server;
    Gate gate(client_loop);
    gate.spawn(receive(*client, at_client));
    {
      Gate server_gate(server_loop);
      server_gate.spawn(receive(*server, at_server));
      for (std::uint64_t steps = seed; steps != 0; --steps) client_loop.run_one_step();
      server_gate.abandon();
    }
    server.reset();
    server_loop.kill();
    ASSERT_TRUE(client_loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_TRUE(at_client.ended);
  }
}

Task<> greet(SimNetwork& network, SimLoop& loop, std::string what) {
  const auto stream = MUST(co_await network.connect(loop, "storage:1"));
  MUST(co_await send(*stream, std::move(what)));
}

Task<> collect(Listener& listener, std::string& order, int count) {
  for (int i = 0; i < count; ++i) {
    const auto stream = MUST(co_await listener.accept());
    Received received;
    co_await receive(*stream, received);
    order += received.text;
  }
}

TEST(SimNetwork, ConnectionsArriveInAnyOrder) {
  std::set<std::string> orders;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SimHost host(seed);
    SimLoop loop(host, seed);
    SimNetwork network;
    const auto listener = MUST(network.listen(loop, "storage:1"));
    EXPECT_EQ(network.listen(loop, "storage:1").error().kind(), ErrorKind::in_use);
    std::string order;
    Gate gate(loop);
    gate.spawn(collect(*listener, order, 2));
    gate.spawn(greet(network, loop, "a"));
    gate.spawn(greet(network, loop, "b"));
    ASSERT_TRUE(loop.run_until([&] { return gate.size() == 0; }));
    orders.insert(order);
  }
  EXPECT_THAT(orders, UnorderedElementsAre("ab", "ba"));
}

TEST(SimNetwork, RefusesWhereNobodyListensAndCancelsAPendingAccept) {
  SimHost host(1);
  SimLoop loop(host, 1);
  SimNetwork network;
  EXPECT_EQ(loop.run_until_complete(network.connect(loop, "nobody")).error().kind(),
            ErrorKind::disconnected);
  const auto listener = MUST(network.listen(loop, "storage:1"));
  std::optional<ErrorKind> error;
  Gate gate(loop);
  gate.spawn([](Listener& on, std::optional<ErrorKind>& into) -> Task<> {
    const auto accepted = co_await on.accept();
    if (!accepted) into = accepted.error().kind();
  }(*listener, error));
  listener->close();
  ASSERT_TRUE(loop.run_until([&] { return gate.size() == 0; }));
  EXPECT_EQ(error, ErrorKind::cancelled);
  EXPECT_EQ(loop.run_until_complete(network.connect(loop, "storage:1")).error().kind(),
            ErrorKind::disconnected);
}

}  // namespace
}  // namespace berth
