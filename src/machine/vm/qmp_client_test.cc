#include "machine/vm/qmp_client.h"

#include <array>
#include <optional>
#include <string>
#include <vector>

#include <sys/socket.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/event.h"
#include "async/gate.h"
#include "async/socket.h"
#include "async/test_support.h"
#include "machine/vm/fake_qmp.h"

namespace berth::machine {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

using Connected = Result<std::unique_ptr<QmpClient>>;

class QmpClientTest : public LoopTest {
 protected:
  QmpClientTest() {
    std::array<int, 2> fds{};
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0);
    client_end_ = MUST(SocketStream::adopt(*loop_, Fd(fds[0])));
    qemu_.emplace(MUST(SocketStream::adopt(*loop_, Fd(fds[1]))));
  }
  ~QmpClientTest() override {
    if (client_) run(*loop_, client_->close());
  }

  Connected start(Duration timeout) {
    return run(*loop_, QmpClient::start(*loop_, std::move(client_end_), timeout));
  }
  /// A client in command mode, whose events and end are kept.
  void connect() {
    Gate gate(*loop_);
    gate.spawn(ignore(qemu_->accept_capabilities()));
    client_ = MUST(start(10s));
    run(*loop_, gate.drained());
    client_->set_handlers(
        [this](const std::string& event, const Json& /*data*/) { note_event(event); },
        [this] { note_closed(); });
  }
  void note_event(const std::string& event) {
    events_.push_back(event);
    changed_.notify_all();
  }
  void note_closed() {
    ++closed_;
    changed_.notify_all();
  }
  Task<> until_closed() {
    while (closed_ == 0) co_await changed_.wait();
  }
  Task<> until_events(std::size_t count) {
    while (events_.size() < count) co_await changed_.wait();
  }

  /// Asks, and keeps the answer where `outcomes_` has it.
  Task<> ask(std::string command, Duration timeout = 20s) {
    const std::size_t place = outcomes_.size();
    outcomes_.emplace_back();
    outcomes_[place] = co_await client_->execute(command, nullptr, timeout);
    changed_.notify_all();
  }
  std::string outcome(std::size_t place) {
    const auto& result = outcomes_.at(place);
    if (!result) return "none";
    return result->has_value() ? (*result)->dump() : std::string(to_string(result->error().kind()));
  }

  static Task<> ignore(Task<Result<void>> task) { (void)co_await task; }

  std::unique_ptr<Stream> client_end_;
  std::optional<FakeQmp> qemu_;
  std::unique_ptr<QmpClient> client_;
  std::vector<std::string> events_;
  std::vector<std::optional<Result<Json>>> outcomes_;
  int closed_ = 0;
  Event changed_{*loop_};
};

TEST_F(QmpClientTest, EntersCommandModeAndAsks) {
  connect();
  EXPECT_TRUE(client_->is_open());
  Gate gate(*loop_);
  gate.spawn(ask("query-status"));
  const Json command = MUST(run(*loop_, qemu_->next()));
  EXPECT_EQ(command["execute"], "query-status");
  EXPECT_FALSE(command.contains("arguments"));
  MUST(run(*loop_, qemu_->answer(command["id"], R"({"running": true})")));
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(0), R"({"running":true})");
}

TEST_F(QmpClientTest, ArgumentsAreSent) {
  connect();
  Gate gate(*loop_);
  gate.spawn([](QmpClient& client) -> Task<> {
    (void)co_await client.execute("device_del", {{"id", "disk-a"}}, 20s);
  }(*client_));
  const Json command = MUST(run(*loop_, qemu_->next()));
  EXPECT_EQ(command["arguments"], Json({{"id", "disk-a"}}));
  MUST(run(*loop_, qemu_->answer(command["id"], "{}")));
  run(*loop_, gate.drained());
}

TEST_F(QmpClientTest, WithoutAGreetingConnectingTimesOut) {
  const auto client = start(5ms);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().kind(), ErrorKind::timed_out);
  EXPECT_THAT(client.error().message(), HasSubstr("one client at a time"));
}

TEST_F(QmpClientTest, AQemuThatGreetsAndThenSaysNothingTimesOut) {
  MUST(run(*loop_, qemu_->greet()));
  EXPECT_EQ(start(5ms).error().kind(), ErrorKind::timed_out);
}

TEST_F(QmpClientTest, AQemuThatEndsBeforeTheGreetingIsDisconnected) {
  qemu_->stream().shutdown();
  EXPECT_EQ(start(10s).error().kind(), ErrorKind::disconnected);
}

TEST_F(QmpClientTest, WhatDoesNotGreetIsNoQemu) {
  for (const char* line :
       {"SSH-2.0-OpenSSH\r\n", "{\"return\": {}, \"id\": 1}\n", "{\"event\": \"STOP\"}\n", "\n"}) {
    std::array<int, 2> fds{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
    client_end_ = MUST(SocketStream::adopt(*loop_, Fd(fds[0])));
    qemu_.emplace(MUST(SocketStream::adopt(*loop_, Fd(fds[1]))));
    MUST(run(*loop_, qemu_->say(line)));
    EXPECT_EQ(start(10s).error().kind(), ErrorKind::protocol) << line;
  }
}

TEST_F(QmpClientTest, NobodyWhoListensIsDisconnected) {
  const ScratchDirectory directory;
  const auto client = run(*loop_, QmpClient::connect(*loop_, directory / "qmp.sock", 10s));
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().kind(), ErrorKind::disconnected);
  EXPECT_THAT(client.error().message(), HasSubstr("qmp.sock"));
}

TEST_F(QmpClientTest, OverlappingCommandsGetTheirOwnAnswersInAnyOrder) {
  connect();
  Gate gate(*loop_);
  for (const char* command : {"a", "b", "c"}) gate.spawn(ask(command));
  std::vector<Json> commands;
  for (int i = 0; i < 3; ++i) commands.push_back(MUST(run(*loop_, qemu_->next())));
  for (const std::size_t i : {2U, 0U, 1U})
    MUST(run(*loop_, qemu_->answer(commands[i]["id"], commands[i]["execute"].dump())));
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(0), "\"a\"");
  EXPECT_EQ(outcome(1), "\"b\"");
  EXPECT_EQ(outcome(2), "\"c\"");
}

TEST_F(QmpClientTest, EventsBetweenAnswersAreToldInOrder) {
  connect();
  Gate gate(*loop_);
  gate.spawn(ask("cont"));
  const Json command = MUST(run(*loop_, qemu_->next()));
  MUST(run(*loop_,
           qemu_->say(fmt::format("{{\"event\": \"A\"}}\r\n{{\"event\": \"B\"}}\r\n"
                                  "{{\"return\": 1, \"id\": {}}}\r\n{{\"event\": \"C\"}}\r\n",
                                  command["id"].dump()))));
  run(*loop_, bounded(*loop_, until_events(3)));
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(0), "1");
  EXPECT_THAT(events_, ElementsAre("A", "B", "C"));
}

TEST_F(QmpClientTest, ErrorsHaveAKindAndQemusWords) {
  connect();
  Gate gate(*loop_);
  for (const char* command : {"a", "b"}) gate.spawn(ask(command));
  const char* answer = R"({{"error": {{"class": "{}", "desc": "the words"}}, "id": {}}})"
                       "\r\n";
  for (const char* error_class : {"GenericError", "DeviceNotFound"}) {
    const Json command = MUST(run(*loop_, qemu_->next()));
    MUST(run(*loop_,
             qemu_->say(fmt::format(fmt::runtime(answer), error_class, command["id"].dump()))));
  }
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(0), "precondition");
  EXPECT_EQ(outcome(1), "not_found");
  EXPECT_THAT(outcomes_[0]->error().message(), HasSubstr("a: the words"));
}

TEST_F(QmpClientTest, AnAnswerAfterTheTimeIsDropped) {
  connect();
  run(*loop_, ask("slow", 5ms));
  EXPECT_EQ(outcome(0), "timed_out");
  EXPECT_THAT(outcomes_[0]->error().message(), HasSubstr("slow"));
  Gate gate(*loop_);
  gate.spawn(ask("next"));
  const Json slow = MUST(run(*loop_, qemu_->next()));
  const Json next = MUST(run(*loop_, qemu_->next()));
  MUST(run(*loop_, qemu_->answer(slow["id"], "\"late\"")));
  MUST(run(*loop_, qemu_->answer(next["id"], "\"right\"")));
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(1), "\"right\"");
}

TEST_F(QmpClientTest, ACommandThatCouldNotBeSentInTimeIsNotSentLater) {
  connect();
  Gate gate(*loop_);
  // More than a socket holds.
  gate.spawn(ask(std::string(4U << 20U, 'x'), 20s));
  run(*loop_, ask("unsent", 5ms));
  EXPECT_EQ(outcome(1), "timed_out");
  gate.spawn(ask("last"));
  LineBuffer lines(8 << 20);
  std::vector<std::string> seen;
  std::vector<std::byte> buffer(1 << 20);
  while (seen.size() < 2) {
    lines.append(Bytes(buffer).first(MUST(run(*loop_, qemu_->stream().read_some(buffer)))));
    while (const auto line = MUST(lines.next())) {
      const Json command = MUST(parse_json(*line));
      seen.push_back(command["execute"].get<std::string>().substr(0, 6));
      MUST(run(*loop_, qemu_->answer(command["id"], "1")));
    }
  }
  run(*loop_, gate.drained());
  EXPECT_THAT(seen, ElementsAre("xxxxxx", "last"));
}

TEST_F(QmpClientTest, CommandsWithoutAnAnswerAreBounded) {
  connect();
  Gate gate(*loop_);
  for (std::size_t i = 0; i < qmp_commands_max - 1; ++i) gate.spawn(ask("a"));
  run(*loop_, ask("slow", 5ms));
  run(*loop_, ask("one too many"));
  EXPECT_EQ(outcome(qmp_commands_max), "limit");
  // An answer that nobody waits for makes room all the same.
  for (std::size_t i = 0; i < qmp_commands_max; ++i) {
    const Json command = MUST(run(*loop_, qemu_->next()));
    MUST(run(*loop_, qemu_->answer(command["id"], "1")));
  }
  run(*loop_, gate.drained());
  gate.spawn(ask("one more"));
  const Json command = MUST(run(*loop_, qemu_->next()));
  MUST(run(*loop_, qemu_->answer(command["id"], "2")));
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(qmp_commands_max + 1), "2");
}

TEST_F(QmpClientTest, BytesThatAreNoQmpEndTheConnection) {
  for (const std::string& bytes : {
           std::string("garbage\n"),
           std::string("\x00\xff\xfe\n", 4),
           std::string("{\"return\": 1, \"id\": 999}\n"),  // nobody asked
           std::string("{\"QMP\": {}}\n"),
           std::string("{\"error\": {\"class\": \"GenericError\", \"desc\": \"what?\"}}\n"),
           std::string(qmp_line_max + 1, 'a'),
       }) {
    std::array<int, 2> fds{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
    client_end_ = MUST(SocketStream::adopt(*loop_, Fd(fds[0])));
    qemu_.emplace(MUST(SocketStream::adopt(*loop_, Fd(fds[1]))));
    connect();
    outcomes_.clear();
    closed_ = 0;
    Gate gate(*loop_);
    gate.spawn(ask("a"));
    gate.spawn(ask("b"));
    gate.spawn(ignore(qemu_->say(bytes)));
    run(*loop_, gate.drained());
    EXPECT_EQ(outcome(0), "protocol") << bytes.substr(0, 80);
    EXPECT_EQ(outcome(1), "protocol") << bytes.substr(0, 80);
    run(*loop_, until_closed());
    EXPECT_FALSE(client_->is_open());
    run(*loop_, ask("later"));
    EXPECT_EQ(outcome(2), "disconnected");
    run(*loop_, client_->close());
    EXPECT_EQ(closed_, 1);
    client_.reset();
  }
}

TEST_F(QmpClientTest, AQemuThatDiesDisconnectsEveryCommand) {
  connect();
  Gate gate(*loop_);
  gate.spawn(ask("a"));
  gate.spawn(ask("b"));
  MUST(run(*loop_, qemu_->next()));
  qemu_.reset();
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(0), "disconnected");
  EXPECT_EQ(outcome(1), "disconnected");
  run(*loop_, until_closed());
  EXPECT_EQ(closed_, 1);
  EXPECT_FALSE(client_->is_open());
  run(*loop_, ask("later"));
  EXPECT_EQ(outcome(2), "disconnected");
}

TEST_F(QmpClientTest, WhatADyingQemuSaidIsToldBeforeItsEnd) {
  connect();
  MUST(run(*loop_, qemu_->say("{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n")));
  qemu_.reset();
  // A command that cannot be written any more does not keep the words from being read.
  run(*loop_, ask("query-status"));
  EXPECT_EQ(outcome(0), "disconnected");
  run(*loop_, until_closed());
  EXPECT_THAT(events_, ElementsAre("SHUTDOWN"));
}

TEST_F(QmpClientTest, AnEndBeforeTheHandlersIsTold) {
  Gate gate(*loop_);
  gate.spawn(ignore(qemu_->accept_capabilities()));
  client_ = MUST(start(10s));
  run(*loop_, gate.drained());
  qemu_.reset();
  run(*loop_, ask("a"));
  client_->set_handlers(nullptr, [this] { note_closed(); });
  EXPECT_EQ(closed_, 0);  // not from inside the call
  run(*loop_, until_closed());
  client_->set_handlers(nullptr, [this] { note_closed(); });
  run(*loop_, client_->close());
  EXPECT_EQ(closed_, 1);
}

TEST_F(QmpClientTest, ClosingDisconnectsOpenCommandsAndIsNotTold) {
  connect();
  Gate gate(*loop_);
  gate.spawn(ask("a"));
  gate.spawn(ask(std::string(4U << 20U, 'x')));  // being written
  gate.spawn(ask("unsent"));
  MUST(run(*loop_, qemu_->next()));
  run(*loop_, client_->close());
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(outcome(i), "disconnected");
  run(*loop_, client_->close());
  client_.reset();
  EXPECT_EQ(closed_, 0);
  run(*loop_, gate.drained());
}

/// Closes the client from the follow-up of a handler, and destroys it.
Task<> close_and_destroy(std::unique_ptr<QmpClient>& client) {
  co_await client->close();
  client.reset();
}

TEST_F(QmpClientTest, AnEventHandlersFollowUpMayCloseTheClient) {
  connect();
  Gate gate(*loop_);
  client_->set_handlers(
      [&](const std::string& event, const Json& /*data*/) {
        note_event(event);
        gate.spawn(close_and_destroy(client_));
      },
      [this] { note_closed(); });
  gate.spawn(ask("a"));
  MUST(run(*loop_, qemu_->next()));
  MUST(run(*loop_, qemu_->say("{\"event\": \"A\"}\n{\"event\": \"B\"}\n")));
  run(*loop_, bounded(*loop_, gate.drained()));
  EXPECT_EQ(client_, nullptr);
  EXPECT_THAT(events_, ElementsAre("A"));
  EXPECT_EQ(outcome(0), "disconnected");
  EXPECT_EQ(closed_, 0);
}

TEST_F(QmpClientTest, TheClosedHandlersFollowUpMayCloseTheClient) {
  connect();
  Gate gate(*loop_);
  client_->set_handlers(nullptr, [&] {
    note_closed();
    gate.spawn(close_and_destroy(client_));
  });
  gate.spawn(ask("a"));
  qemu_.reset();
  run(*loop_, bounded(*loop_, gate.drained()));
  EXPECT_EQ(client_, nullptr);
  EXPECT_EQ(closed_, 1);
}

TEST_F(QmpClientTest, AnEventHandlerMayAskAndReplaceItself) {
  connect();
  Gate gate(*loop_);
  client_->set_handlers(
      [&](const std::string& event, const Json& /*data*/) {
        client_->set_handlers(nullptr, nullptr);
        note_event(event);
        gate.spawn(ask("query-status"));
      },
      nullptr);
  MUST(run(*loop_, qemu_->say("{\"event\": \"A\"}\n{\"event\": \"B\"}\n")));
  const Json command = MUST(run(*loop_, qemu_->next()));
  MUST(run(*loop_, qemu_->answer(command["id"], "5")));
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome(0), "5");
  EXPECT_THAT(events_, ElementsAre("A"));
}

}  // namespace
}  // namespace berth::machine
