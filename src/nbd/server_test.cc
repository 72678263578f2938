// The server in simulated time, with connections that break messages into pieces, stall and are
// cut.
//
// 1. Every request gets one answer, with the data that an array in its place would have.
// 2. What was acknowledged is in the export, however the connection ends.
// 3. A client has no effect on another one, whatever it sends or does not take.
// 4. Nothing is left of a connection that has ended: no request, no task.

#include "nbd/server.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/deadline.h"
#include "async/event.h"
#include "nbd/memory_export.h"
#include "nbd/test_client.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"
#include "testing/sim_network.h"
#include "testing/sim_random.h"

namespace berth::nbd {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::Pair;

/// Another export, whose calls take a while, or wait until they are let go.
class SlowExport final : public Export {
 public:
  SlowExport(SimLoop& loop, std::shared_ptr<Export> inner)
      : loop_(loop), inner_(std::move(inner)), released_(loop) {}

  const ExportInfo& info() const override { return inner_->info(); }
  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    const Call call(*this);
    co_await pass();
    co_return co_await inner_->read(offset, into);
  }
  Task<Result<void>> write(std::uint64_t offset, Bytes from, bool force_unit_access) override {
    const Call call(*this);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(from.data()) % AlignedBuffer::alignment, 0U);
    co_await pass();
    co_return co_await inner_->write(offset, from, force_unit_access);
  }
  Task<Result<void>> flush() override {
    const Call call(*this);
    co_await pass();
    co_return co_await inner_->flush();
  }
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length,
                             bool force_unit_access) override {
    const Call call(*this);
    co_await pass();
    co_return co_await inner_->discard(offset, length, force_unit_access);
  }
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length,
                          ZeroOptions options) override {
    const Call call(*this);
    co_await pass();
    co_return co_await inner_->zero(offset, length, options);
  }
  Task<Result<std::vector<StatusExtent>>> block_status(std::string context, std::uint64_t offset,
                                                       std::uint64_t length,
                                                       std::size_t extents_max) override {
    const Call call(*this);
    co_await pass();
    co_return co_await inner_->block_status(std::move(context), offset, length, extents_max);
  }

  void hold() { held_ = true; }
  void release() {
    held_ = false;
    released_.notify_all();
  }
  std::size_t calls() const { return calls_; }  // under way
  std::size_t calls_most() const { return calls_most_; }
  std::size_t calls_total() const { return calls_total_; }

 private:
  struct Call {
    explicit Call(SlowExport& of) : served(of) {
      ++served.calls_total_;
      served.calls_most_ = std::max(++served.calls_, served.calls_most_);
    }
    ~Call() { --served.calls_; }
    SlowExport& served;
  };
  Task<> pass() {
    SimRandom& random = loop_.scheduler().random;
    if (random.one_in(3)) co_await loop_.sleep(std::chrono::microseconds(random.below(5000)));
    while (held_) co_await released_.wait();
  }

  SimLoop& loop_;
  std::shared_ptr<Export> inner_;
  Event released_;
  bool held_ = false;
  std::size_t calls_ = 0;
  std::size_t calls_most_ = 0;
  std::size_t calls_total_ = 0;
};

class Exports final : public ExportDirectory {
 public:
  explicit Exports(SimLoop& loop) : loop_(loop) {}
  std::map<std::string, std::shared_ptr<Export>> exports;
  Duration delay{};
  std::size_t finds = 0;

  std::vector<ListedExport> list() override {
    std::vector<ListedExport> listed;
    for (const auto& [name, served] : exports) listed.push_back({.name = name, .description = ""});
    return listed;
  }
  Task<Result<std::shared_ptr<Export>>> find(std::string name) override {
    ++finds;
    if (delay != Duration{}) co_await loop_.sleep(delay);
    const auto found = exports.find(name);
    if (found == exports.end()) co_return failure(ErrorKind::not_found, "no export '" + name + "'");
    co_return found->second;
  }

 private:
  SimLoop& loop_;
};

constexpr std::uint64_t export_size = 4 * MiB;

struct World {
  explicit World(std::uint64_t seed, ServerOptions options = {}, SimLinkOptions links = {})
      : host(seed),
        loop(host, seed),
        network(links),
        exports(loop),
        server(loop, exports, options) {
    MemoryExport::Options memory_options;
    memory_options.info.name = "disk";
    memory_options.info.size = export_size;
    memory_options.changed_context = "berth:changed:start";
    memory = std::make_shared<MemoryExport>(std::move(memory_options));
    slow = std::make_shared<SlowExport>(loop, memory);
    exports.exports["disk"] = slow;
    server.serve(MUST(network.listen(loop, "server")));
  }
  ~World() {
    loop.run_until_complete(server.stop());
    EXPECT_EQ(server.connection_count(), 0U);
    EXPECT_EQ(slow->calls(), 0U);
  }

  std::unique_ptr<TestClient> connect() {
    return std::make_unique<TestClient>(
        MUST(loop.run_until_complete(network.connect(loop, "server"))));
  }
  std::unique_ptr<TestClient> enter(TestClient::Entry entry = {}) {
    auto client = connect();
    MUST(loop.run_until_complete(client->enter("disk", std::move(entry))));
    return client;
  }
  ClientReply call(TestClient& client, const Request& request,
                   std::vector<std::byte> payload = {}) {
    return MUST(loop.run_until_complete(client.call(request, std::move(payload))));
  }
  bool ends(TestClient& client) { return loop.run_until_complete(client.ends()); }

  SimHost host;
  SimLoop loop;
  SimNetwork network;
  std::shared_ptr<MemoryExport> memory;
  std::shared_ptr<SlowExport> slow;
  Exports exports;
  Server server;
};

std::vector<std::byte> pattern(std::uint64_t seed, std::size_t length) {
  std::vector<std::byte> bytes(length);
  SimRandom(seed).fill(bytes);
  return bytes;
}

/// A client with many requests under way in ranges of its own, and an array that says what they
/// should do.
class ModelClient {
 public:
  ModelClient(World& world, std::uint64_t seed, std::uint64_t begin, std::uint64_t end,
              std::vector<std::byte>& model)
      : world_(world), random_(seed), begin_(begin), end_(end), model_(model) {}

  Task<Result<void>> run(std::size_t operations) {
    client_ = std::make_unique<TestClient>(
        CO_TRY(co_await world_.network.connect(world_.loop, "server")));
    CO_TRY(co_await client_->enter("disk", {.structured_replies = random_.one_in(2)}));
    for (std::size_t i = 0; i < operations; ++i) {
      while (!pending_.empty() && (pending_.size() >= 12 || random_.one_in(4)))
        CO_TRY(co_await take_reply());
      CO_TRY(co_await start());
    }
    while (!pending_.empty()) CO_TRY(co_await take_reply());
    co_return co_await client_->request({.type = Command::disconnect}, {});
  }

  Stream* stream() { return client_ == nullptr ? nullptr : &client_->stream(); }
  /// What was sent and not acknowledged: its ranges are old or new.
  bool is_uncertain(std::uint64_t at) const {
    return std::ranges::any_of(pending_, [&](const auto& entry) {
      const Request& request = entry.second.request;
      return request.type != Command::read && at >= request.offset &&
             at < request.offset + request.length;
    });
  }

 private:
  struct Pending {
    Request request;
    std::vector<std::byte> expected;
  };

  Task<Result<void>> start() {
    Request request{.cookie = random_.next()};
    const std::uint64_t choice = random_.below(10);
    request.type = choice < 4   ? Command::write
                   : choice < 8 ? Command::read
                   : choice < 9 ? Command::write_zeroes
                                : Command::flush;
    Pending pending;
    std::vector<std::byte> payload;
    if (request.type != Command::flush) {
      const std::array<std::uint64_t, 5> lengths{0, 512, 4096, random_.below(9000),
                                                 random_.below(200'000)};
      const auto length = static_cast<std::uint32_t>(lengths[random_.below(lengths.size())]);
      request.offset = random_.between(begin_, end_ - length);
      request.length = length;
      // Requests under way whose ranges overlap have no order: wait until they have ended.
      while (overlaps(request)) CO_TRY(co_await take_reply());
      if (random_.one_in(8)) request.flags = command_flag_fua;
      const auto at = model_.begin() + static_cast<std::ptrdiff_t>(request.offset);
      if (request.type == Command::write) {
        payload = pattern(random_.next(), length);
        std::ranges::copy(payload, at);
      } else if (request.type == Command::write_zeroes) {
        std::fill_n(at, length, std::byte{0});
      } else {
        pending.expected.assign(at, at + length);
      }
    }
    pending.request = request;
    pending_.emplace(request.cookie, std::move(pending));
    co_return co_await client_->request(request, std::move(payload));
  }

  bool overlaps(const Request& request) const {
    return std::ranges::any_of(pending_, [&](const auto& entry) {
      const Request& other = entry.second.request;
      return request.offset < other.offset + other.length &&
             other.offset < request.offset + request.length;
    });
  }

  Task<Result<void>> take_reply() {
    const ClientReply reply = CO_TRY(co_await client_->reply());
    const auto found = pending_.find(reply.cookie);
    EXPECT_NE(found, pending_.end()) << "a reply to nothing";
    if (found == pending_.end()) co_return failure(ErrorKind::protocol, "a reply to nothing");
    EXPECT_EQ(reply.error, WireError::none);
    EXPECT_TRUE(reply.done);
    const Request& request = found->second.request;
    EXPECT_TRUE(reply.data == found->second.expected) << request.offset << " " << request.length;
    pending_.erase(found);
    co_return Result<void>{};
  }

  World& world_;
  SimRandom random_;
  const std::uint64_t begin_;
  const std::uint64_t end_;
  std::vector<std::byte>& model_;
  std::unique_ptr<TestClient> client_;
  std::map<std::uint64_t, Pending> pending_;
};

std::vector<std::byte> content_of(World& world) {
  std::vector<std::byte> content(export_size);
  MUST(world.loop.run_until_complete(world.memory->read(0, content)));
  return content;
}

TEST(Server, AnswersAsAnArrayWould) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    World world(seed);
    std::vector<std::byte> model(export_size);
    ModelClient client(world, seed, 0, export_size, model);
    const auto outcome = world.loop.run_until_complete(client.run(120));
    ASSERT_TRUE(outcome) << "seed " << seed << ": " << outcome.error().message();
    EXPECT_TRUE(content_of(world) == model) << "seed " << seed;
    if (HasFailure()) break;
  }
}

Task<> run_model(ModelClient& client, std::size_t operations) {
  MUST(co_await client.run(operations));
}

TEST(Server, ServesManyClientsAtOnce) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    World world(seed);
    std::vector<std::byte> model(export_size);
    std::vector<std::unique_ptr<ModelClient>> clients;
    Gate gate(world.loop);
    constexpr std::size_t count = 16;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t part = export_size / count;
      clients.push_back(
          std::make_unique<ModelClient>(world, seed * count + i, i * part, (i + 1) * part, model));
      gate.spawn(run_model(*clients.back(), 40));
    }
    world.loop.run_until_complete(gate.drained());
    EXPECT_TRUE(content_of(world) == model) << "seed " << seed;
    if (HasFailure()) break;
  }
}

Task<> run_until_cut(ModelClient& client) { static_cast<void>(co_await client.run(1000)); }

TEST(Server, LosesNothingAcknowledgedWhenAConnectionIsCut) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    World world(seed);
    std::vector<std::byte> model(export_size);
    ModelClient client(world, seed, 0, export_size, model);
    Gate gate(world.loop);
    gate.spawn(run_until_cut(client));
    SimRandom random(seed);
    const std::uint64_t steps_end = world.loop.steps() + random.between(1, 6000);
    ASSERT_TRUE(
        world.loop.run_until([&] { return world.loop.steps() >= steps_end || gate.size() == 0; }));
    world.network.cut();
    world.loop.run_until_complete(gate.drained());
    ASSERT_TRUE(world.loop.run_until([&] { return world.server.connection_count() == 0; }))
        << "seed " << seed;
    const std::vector<std::byte> content = content_of(world);
    for (std::uint64_t at = 0; at < export_size; ++at) {
      if (content[at] == model[at] || client.is_uncertain(at)) continue;
      FAIL() << "seed " << seed << ": byte " << at;
    }
  }
}

TEST(Server, TakesWritesOfEverySizeWhole) {
  World world(7);
  const auto client = world.enter();
  for (const std::uint32_t length :
       {1U, 511U, 4096U, 65'536U, 65'537U, 262'144U, 262'145U, 3'000'001U}) {
    const auto data = pattern(length, length);
    const Request write{.type = Command::write, .cookie = length, .offset = 4095, .length = length};
    EXPECT_EQ(world.call(*client, write, data).error, WireError::none);
    const Request read{.type = Command::read, .cookie = 1, .offset = 4095, .length = length};
    EXPECT_TRUE(world.call(*client, read).data == data) << length;
  }
}

TEST(Server, SaysSoWhereARangeIsAllZero) {
  World world(1);
  const auto client = world.enter();
  EXPECT_EQ(world.call(*client, {.type = Command::read, .length = MiB}).type,
            ReplyType::offset_hole);
  EXPECT_EQ(
      world.call(*client, {.type = Command::write, .offset = MiB - 1, .length = 1}, {std::byte{1}})
          .error,
      WireError::none);
  EXPECT_EQ(world.call(*client, {.type = Command::read, .length = MiB}).type,
            ReplyType::offset_data);
  EXPECT_EQ(world.call(*client, {.type = Command::read, .length = 0}).type, ReplyType::none);
}

TEST(Server, AnswersRefusedRequestsAndGoesOn) {
  for (const bool structured : {false, true}) {
    World world(2, {}, {.window_bytes = 64 * MiB, .fragments = false});
    const auto client = world.enter({.structured_replies = structured});
    const auto too_large = static_cast<std::uint32_t>(payload_length_max + 1);
    const auto error_of = [&](const Request& request, std::vector<std::byte> payload = {}) {
      const ClientReply reply = world.call(*client, request, std::move(payload));
      EXPECT_EQ(reply.cookie, request.cookie);
      EXPECT_TRUE(reply.done);
      return reply.error;
    };
    EXPECT_EQ(error_of({.type = Command::write, .cookie = 1, .offset = export_size, .length = 9000},
                       pattern(1, 9000)),
              WireError::no_space);
    EXPECT_EQ(
        error_of({.type = Command::write, .cookie = 2, .length = too_large}, pattern(1, too_large)),
        WireError::invalid);
    EXPECT_EQ(error_of({.type = Command::read, .cookie = 3, .offset = export_size, .length = 1}),
              WireError::invalid);
    EXPECT_EQ(error_of({.flags = 1U << 15, .type = Command::write, .cookie = 4, .length = 3},
                       pattern(1, 3)),
              WireError::invalid);
    EXPECT_EQ(error_of({.type = static_cast<Command>(77), .cookie = 5}), WireError::invalid);
    EXPECT_EQ(error_of({.type = Command::block_status, .cookie = 6, .length = 1}),
              WireError::invalid);
    EXPECT_EQ(error_of({.type = Command::flush, .cookie = 7}), WireError::none);
    EXPECT_EQ(world.slow->calls_total(), 1U);
  }
}

TEST(Server, CutsOffAPayloadThatNobodyWouldSend) {
  World world(3);
  const auto client = world.enter();
  MUST(world.loop.run_until_complete(client->request({.type = Command::write, .length = ~0U}, {})));
  EXPECT_TRUE(world.ends(*client));
}

TEST(Server, PassesOnWhatTheExportSays) {
  class Failing final : public Export {
   public:
    const ExportInfo& info() const override { return info_; }
    Task<Result<void>> read(std::uint64_t /*offset*/, MutableBytes /*into*/) override {
      co_return error(ErrorKind::corrupt);
    }
    Task<Result<void>> write(std::uint64_t /*offset*/, Bytes /*from*/, bool /*fua*/) override {
      co_return error(ErrorKind::no_space);
    }
    Task<Result<void>> flush() override { co_return error(ErrorKind::io_error); }
    Task<Result<void>> discard(std::uint64_t /*offset*/, std::uint64_t /*length*/,
                               bool /*fua*/) override {
      co_return error(ErrorKind::read_only);
    }
    Task<Result<void>> zero(std::uint64_t /*offset*/, std::uint64_t /*length*/,
                            ZeroOptions /*options*/) override {
      co_return error(ErrorKind::unsupported);
    }
    Task<Result<std::vector<StatusExtent>>> block_status(std::string /*context*/,
                                                         std::uint64_t /*offset*/,
                                                         std::uint64_t /*length*/,
                                                         std::size_t /*max*/) override {
      co_return std::vector<StatusExtent>{};
    }

   private:
    static std::unexpected<Error> error(ErrorKind kind) { return failure(kind, "it failed"); }
    ExportInfo info_{.name = "failing", .size = MiB};
  };
  World world(4);
  world.exports.exports["failing"] = std::make_shared<Failing>();
  const auto client = world.connect();
  MUST(world.loop.run_until_complete(client->enter("failing", {.contexts = {"base:allocation"}})));
  EXPECT_EQ(world.call(*client, {.type = Command::read, .length = 512}).error, WireError::io);
  EXPECT_EQ(world.call(*client, {.type = Command::write, .length = 1}, {std::byte{}}).error,
            WireError::no_space);
  EXPECT_EQ(world.call(*client, {.type = Command::flush}).error, WireError::io);
  EXPECT_EQ(world.call(*client, {.type = Command::trim, .length = 1}).error, WireError::permission);
  EXPECT_EQ(world
                .call(*client,
                      {.flags = command_flag_fast_zero, .type = Command::write_zeroes, .length = 1})
                .error,
            WireError::unsupported);
  EXPECT_EQ(world.call(*client, {.type = Command::block_status, .length = 1}).error, WireError::io);
}

TEST(Server, ShowsTheStatusOfEverySelectedContext) {
  World world(5);
  const auto client = world.enter({.contexts = {"berth:changed:start", "base:allocation"}});
  world.memory->mark();
  world.call(*client, {.type = Command::write, .offset = 64 * KiB, .length = 512}, pattern(1, 512));

  ClientReply first = world.call(*client, {.type = Command::block_status, .length = MiB});
  const ClientReply second = MUST(world.loop.run_until_complete(client->reply()));
  EXPECT_FALSE(first.done);
  EXPECT_TRUE(second.done);
  EXPECT_EQ(first.context, 0U);
  EXPECT_EQ(second.context, 1U);
  EXPECT_THAT(first.extents, ElementsAre(Pair(65536, 3), Pair(65536, 0), Pair(MiB - 131072, 3)));
  EXPECT_THAT(second.extents, ElementsAre(Pair(65536, 0), Pair(65536, 1), Pair(MiB - 131072, 0)));

  first = world.call(*client, {.flags = command_flag_req_one,
                               .type = Command::block_status,
                               .offset = 100,
                               .length = 70'000});
  MUST(world.loop.run_until_complete(client->reply()));
  EXPECT_THAT(first.extents, ElementsAre(Pair(65436, 3)));
}

TEST(Server, FinishesWhatIsUnderWayBeforeItLetsAClientGo) {
  World world(6);
  const auto client = world.enter();
  world.slow->hold();
  for (std::uint64_t cookie = 0; cookie < 20; ++cookie) {
    MUST(world.loop.run_until_complete(client->request(
        {.type = Command::write, .cookie = cookie, .offset = cookie * 4096, .length = 4096},
        pattern(cookie, 4096))));
  }
  MUST(world.loop.run_until_complete(client->request({.type = Command::disconnect}, {})));
  ASSERT_TRUE(world.loop.run_until([&] { return world.slow->calls() == 20; }));
  world.slow->release();
  std::set<std::uint64_t> answered;
  for (int i = 0; i < 20; ++i)
    answered.insert(MUST(world.loop.run_until_complete(client->reply())).cookie);
  EXPECT_EQ(answered.size(), 20U);
  EXPECT_TRUE(world.ends(*client));
}

TEST(Server, StopAnswersWhatIsUnderWayAndNothingElse) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    World world(seed);
    const auto client = world.enter();
    const auto silent = world.connect();
    world.slow->hold();
    MUST(world.loop.run_until_complete(
        client->request({.type = Command::write, .cookie = 1, .length = 512}, pattern(1, 512))));
    ASSERT_TRUE(world.loop.run_until([&] { return world.slow->calls() == 1; }));
    Gate gate(world.loop);
    gate.spawn(world.server.stop());
    MUST(world.loop.run_until_complete(
        client->request({.type = Command::read, .cookie = 2, .length = 512}, {})));
    // A part of a payload, too: nobody waits for its rest.
    MUST(world.loop.run_until_complete(
        client->request({.type = Command::write, .cookie = 3, .length = 100'000}, {})));
    while (!world.ends(*silent)) {  // the greeting comes first
    }
    ASSERT_TRUE(world.loop.run_until([&] { return world.server.connection_count() == 1; }));
    world.slow->release();
    EXPECT_EQ(MUST(world.loop.run_until_complete(client->reply())).cookie, 1U);
    EXPECT_TRUE(world.ends(*client));
    world.loop.run_until_complete(gate.drained());
    EXPECT_EQ(world.slow->calls_total(), 1U);
    EXPECT_FALSE(world.loop.run_until_complete(world.network.connect(world.loop, "server")));
  }
}

TEST(Server, StopDoesNotWaitForAClientInTheMiddleOfAPayload) {
  World world(8);
  const auto client = world.enter();
  MUST(world.loop.run_until_complete(
      client->request({.type = Command::write, .length = 1000}, pattern(1, 10))));
  MUST(world.loop.run_until_complete(client->request({}, {})));  // some of what is missing
  const Instant before = world.loop.now();
  world.loop.run_until_complete(world.server.stop());
  EXPECT_LT(world.loop.now() - before, seconds(1));
}

TEST(Server, StopCutsOffAClientThatDoesNotTakeItsAnswers) {
  World world(9, {.drain_timeout = seconds(5)}, {.window_bytes = 64 * KiB});
  const auto client = world.enter();
  world.call(*client, {.type = Command::write, .length = MiB}, pattern(1, MiB));
  for (std::uint64_t cookie = 0; cookie < 8; ++cookie) {
    MUST(world.loop.run_until_complete(
        client->request({.type = Command::read, .cookie = cookie, .length = MiB}, {})));
  }
  ASSERT_TRUE(world.loop.run_until(
      [&] { return world.slow->calls_total() == 9 && world.slow->calls() == 0; }));
  const Instant before = world.loop.now();
  world.loop.run_until_complete(world.server.stop());
  EXPECT_GE(world.loop.now() - before, seconds(5));
  EXPECT_LT(world.loop.now() - before, seconds(6));
}

TEST(Server, LetsASlowClientWaitAlone) {
  World world(10, {}, {.window_bytes = 64 * KiB});
  const auto slow = world.enter();
  world.call(*slow, {.type = Command::write, .length = MiB}, pattern(1, MiB));
  for (std::uint64_t cookie = 0; cookie < 100; ++cookie) {  // and takes no answer
    MUST(world.loop.run_until_complete(
        slow->request({.type = Command::read, .cookie = cookie, .length = MiB}, {})));
  }
  const auto other = world.enter();
  const Instant before = world.loop.now();
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(world.call(*other, {.type = Command::read, .length = 4096}).error, WireError::none);
  EXPECT_LT(world.loop.now() - before, seconds(5));
  EXPECT_LE(world.slow->calls_total(), 1 + Limits{}.bytes_in_flight_max / MiB + 20);
  slow->stream().shutdown();
}

TEST(Server, BoundsTheRequestsOfAClient) {
  World world(11, {.connection = {.limits = {.requests_in_flight_max = 5}}});
  const auto client = world.enter();
  world.slow->hold();
  for (std::uint64_t cookie = 0; cookie < 50; ++cookie) {
    MUST(world.loop.run_until_complete(
        client->request({.type = Command::read, .cookie = cookie, .length = 512}, {})));
  }
  ASSERT_TRUE(world.loop.run_until_idle());
  EXPECT_EQ(world.slow->calls(), 5U);
  world.slow->release();
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(world.loop.run_until_complete(client->reply()));
  EXPECT_EQ(world.slow->calls_most(), 5U);
}

TEST(Server, BoundsTheBytesOfAClientAndStillTakesTheLargestRequest) {
  World world(12, {.connection = {.limits = {.bytes_in_flight_max = MiB}}});
  const auto client = world.enter();
  for (std::uint64_t cookie = 0; cookie < 6; ++cookie) {
    MUST(world.loop.run_until_complete(
        client->request({.type = Command::read, .cookie = cookie, .length = 2 * MiB}, {})));
  }
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(world.loop.run_until_complete(client->reply()));
  EXPECT_EQ(world.slow->calls_most(), 1U);
}

TEST(Server, DisconnectsWhoSendsGarbageAndServesTheOthers) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    World world(seed);
    const auto good = world.enter();
    auto bad = seed % 2 == 0 ? world.connect() : world.enter();
    Gate gate(world.loop);
    const auto garbage = pattern(seed, 1 + seed * 37);
    MUST(world.loop.run_until_complete(bad->send(Wire().raw(garbage).raw(pattern(seed, 64)))));
    while (!world.ends(*bad)) {  // in a handshake, the greeting comes first
    }
    EXPECT_EQ(world.call(*good, {.type = Command::read, .length = 512}).error, WireError::none);
  }
}

TEST(Server, GivesAHandshakeSoMuchTimeAndNoMore) {
  World world(13, {.connection = {.handshake_timeout = seconds(10)}});
  const auto silent = world.connect();
  const Instant before = world.loop.now();
  while (!world.ends(*silent)) {
  }
  EXPECT_GE(world.loop.now() - before, seconds(9));
  EXPECT_LT(world.loop.now() - before, seconds(11));

  const auto client = world.enter();  // and has all the time in the world after that
  world.loop.run_until_complete(
      [](Loop& loop) -> Task<> { co_await loop.sleep(seconds(100)); }(world.loop));
  EXPECT_EQ(world.call(*client, {.type = Command::read, .length = 512}).error, WireError::none);
}

TEST(Server, DoesNotWaitForEverForAnExport) {
  World world(14, {.connection = {.handshake_timeout = seconds(10)}});
  world.exports.delay = seconds(20);
  const auto client = world.connect();
  EXPECT_FALSE(world.loop.run_until_complete(client->enter("disk", {})));
  ASSERT_TRUE(world.loop.run_until([&] { return world.server.connection_count() == 0; }));
}

TEST(Server, FindsAnExportOnceForOneClient) {
  World world(15);
  const auto client = world.connect();
  MUST(world.loop.run_until_complete(client->greet()));
  MUST(world.loop.run_until_complete(client->ask(Option::structured_reply, {})));
  MUST(world.loop.run_until_complete(client->ask(Option::info, info_data("disk"))));
  MUST(world.loop.run_until_complete(
      client->ask(Option::set_meta_context, context_data("disk", {}))));
  MUST(world.loop.run_until_complete(client->ask(Option::go, info_data("disk"))));
  EXPECT_EQ(world.exports.finds, 1U);
}

TEST(Server, LetsAnExportGoWithItsLastClient) {
  World world(16);
  auto other =
      std::make_shared<MemoryExport>(MemoryExport::Options{.info = {.name = "other", .size = MiB}});
  const std::weak_ptr<MemoryExport> watched = other;
  world.exports.exports["other"] = std::move(other);
  const auto client = world.connect();
  MUST(world.loop.run_until_complete(client->enter("other", {})));
  world.exports.exports.erase("other");
  EXPECT_FALSE(watched.expired());
  EXPECT_EQ(world.call(*client, {.type = Command::read, .length = 512}).error, WireError::none);
  client->stream().shutdown();
  ASSERT_TRUE(world.loop.run_until([&] { return world.server.connection_count() == 0; }));
  EXPECT_TRUE(watched.expired());
}

TEST(Server, TurnsAwayClientsBeyondItsLimit) {
  World world(17, {.connections_max = 2});
  const auto first = world.enter();
  const auto second = world.enter();
  const auto third = world.connect();
  EXPECT_TRUE(world.ends(*third));
  EXPECT_EQ(world.call(*first, {.type = Command::read, .length = 512}).error, WireError::none);
  first->stream().shutdown();
  ASSERT_TRUE(world.loop.run_until([&] { return world.server.connection_count() == 1; }));
  EXPECT_NE(world.enter(), nullptr);
}

TEST(Server, AcceptsAnUncleanEndAtEveryByte) {
  const Request write{.type = Command::write, .cookie = 1, .length = 300};
  Wire all = client_flags();
  all.raw(option(Option::structured_reply).bytes())
      .raw(option(Option::go, info_data("disk").bytes()).bytes())
      .raw(wire_request(write).bytes())
      .raw(pattern(1, 300));
  World world(18);
  for (std::size_t length = 0; length <= all.bytes().size(); length += 1 + length / 40) {
    const auto client = world.connect();
    MUST(world.loop.run_until_complete(client->send(Wire().raw(Bytes(all.bytes()).first(length)))));
    client->stream().shutdown();
    ASSERT_TRUE(world.loop.run_until([&] { return world.server.connection_count() == 0; }))
        << length;
  }
}

TEST(Server, DiesWithItsProcess) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    SimHost host(seed);
    SimLoop loop(host, seed);
    SimNetwork network;
    Exports exports(loop);
    exports.exports["disk"] = std::make_shared<SlowExport>(
        loop, std::make_shared<MemoryExport>(
                  MemoryExport::Options{.info = {.name = "disk", .size = export_size}}));
    auto server = std::make_unique<Server>(loop, exports, ServerOptions{});
    server->serve(MUST(network.listen(loop, "server")));
    TestClient client(MUST(loop.run_until_complete(network.connect(loop, "server"))));
    MUST(loop.run_until_complete(client.enter("disk", {})));
    for (std::uint64_t cookie = 0; cookie < 10; ++cookie) {
      MUST(loop.run_until_complete(client.request(
          {.type = Command::write, .cookie = cookie, .length = 4096}, pattern(1, 4096))));
    }
    SimRandom random(seed);
    for (std::uint64_t steps = random.below(100); steps != 0; --steps) loop.run_one_step();
    server.reset();  // where it stands
  }
}

}  // namespace
}  // namespace berth::nbd
