#include "machine/control_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/event.h"
#include "async/socket.h"
#include "async/uring_loop.h"
#include "machine/control_client.h"
#include "machine/control_messages.h"
#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

using testing::ElementsAre;
using namespace std::chrono_literals;

class ControlServerTest : public testing::Test {
 protected:
  ControlServerTest() {
    server_->add("echo", [this](ControlCall& call) { return echo(call); });
    server_->add("wait", [this](ControlCall& call) { return wait(call); });
    server_->add("progress", [this](ControlCall& call) { return progress(call); });
    server_->add("fail", [this](ControlCall& call) { return fail(call); });
    server_->add("large", [this](ControlCall& call) { return large(call); });
    server_->serve(SocketListener::listen_unix(*loop_, path_).value());
  }
  ~ControlServerTest() override {
    if (server_) run(server_->close(1s));
  }

  template <typename T>
  T run(Task<T> task) {
    return loop_->run_until_complete(std::move(task));
  }
  std::unique_ptr<ControlClient> connect() {
    return std::make_unique<ControlClient>(MUST(run(connect_unix(*loop_, path_, 5s))));
  }

  Task<Result<Json>> echo(ControlCall& call) { co_return call.params(); }
  Task<Result<Json>> fail(ControlCall& /*call*/) {
    co_return failure(ErrorKind::full_backup_required, "the nonce is another");
  }
  Task<Result<Json>> large(ControlCall& /*call*/) {
    co_return Json{{"text", std::string(500'000, 'a')}};
  }
  /// Until it is cancelled or released.
  Task<Result<Json>> wait(ControlCall& call) {
    ++waiting_;
    changed_.notify_all();
    while (!released_ && call.check()) co_await loop_->sleep(1ms);
    --waiting_;
    changed_.notify_all();
    if (auto live = call.check(); !live) co_return failure(std::move(live).error());
    co_return Json::object();
  }
  Task<Result<Json>> progress(ControlCall& call) {
    for (std::uint64_t i = 1; i <= 1000; ++i) {
      call.report({.phase = "copy", .done = i, .total = 1000});
      co_await loop_->yield();
    }
    co_return Json::object();
  }
  Task<> pause() { co_await loop_->sleep(2ms); }
  Task<> until_waiting(std::size_t count) {
    while (waiting_ != count) co_await changed_.wait();
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_ / "control";
  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  Event changed_{*loop_};
  std::size_t waiting_ = 0;
  bool released_ = false;
  std::unique_ptr<ControlServer> server_ = std::make_unique<ControlServer>(*loop_);
};

TEST_F(ControlServerTest, AnswersARequest) {
  const auto client = connect();
  const auto answer = run(client->call("echo", {{"a", 1}}));
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(*answer, Json({{"a", 1}}));
}

TEST_F(ControlServerTest, PassesErrorsOnWithTheirKind) {
  const auto client = connect();
  EXPECT_EQ(run(client->call("fail")).error().kind(), ErrorKind::full_backup_required);
  EXPECT_EQ(run(client->call("no.such.method")).error().kind(), ErrorKind::unsupported);
}

TEST_F(ControlServerTest, RequestsOfOneConnectionRunAtTheSameTime) {
  const auto client = connect();
  const auto slow = MUST(run(client->start("wait", Json::object())));
  ASSERT_TRUE(run(client->call("echo")));
  released_ = true;
  EXPECT_TRUE(run(client->wait(slow)));
}

TEST_F(ControlServerTest, ALineMayComeInPieces) {
  const auto client = connect();
  for (const char* piece :
       {"{\"id\": 9, \"meth", "od\": \"echo\"}", "\n{\"id\": 10, \"method\": \"echo\"}\n"}) {
    ASSERT_TRUE(run(client->send_line(piece)));
    run(pause());
  }
  EXPECT_TRUE(run(client->wait(9)));
  EXPECT_TRUE(run(client->wait(10)));
}

TEST_F(ControlServerTest, CancelEndsARequest) {
  const auto client = connect();
  const auto slow = MUST(run(client->start("wait", Json::object())));
  run(until_waiting(1));
  ASSERT_TRUE(run(client->call("cancel", {{"id", slow}})));
  const auto ended = run(client->wait(slow));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(run(client->call("cancel", {{"id", slow}})).error().kind(), ErrorKind::not_found);
  EXPECT_EQ(run(client->call("cancel")).error().kind(), ErrorKind::invalid_argument);
}

TEST_F(ControlServerTest, AClientCancelsItsOwnRequestsOnly) {
  const auto one = connect();
  const auto other = connect();
  const auto slow = MUST(run(one->start("wait", Json::object())));
  run(until_waiting(1));
  EXPECT_EQ(run(other->call("cancel", {{"id", slow}})).error().kind(), ErrorKind::not_found);
}

TEST_F(ControlServerTest, AClientThatGoesCancelsItsRequests) {
  auto client = connect();
  ASSERT_TRUE(run(client->start("wait", Json::object())));
  run(until_waiting(1));
  client.reset();
  run(until_waiting(0));
}

TEST_F(ControlServerTest, ProgressComesOnlyWhereItIsWantedAndNotTooOften) {
  const auto client = connect();
  ASSERT_TRUE(run(client->call("progress")));
  EXPECT_TRUE(client->others.empty());
  ASSERT_TRUE(run(client->call("progress", {{"progress", true}})));
  ASSERT_FALSE(client->others.empty());
  EXPECT_LT(client->others.size(), 100U);
  EXPECT_EQ(client->others[0].kind, ControlReply::Kind::progress);
  EXPECT_EQ(client->others[0].progress.total, 1000U);
}

TEST_F(ControlServerTest, EventsGoToEveryClient) {
  const auto one = connect();
  const auto other = connect();
  ASSERT_TRUE(run(one->call("echo")));
  ASSERT_TRUE(run(other->call("echo")));
  server_->send_event("checkpoint_lost", "space ran out");
  EXPECT_EQ(run(one->next())->event, "checkpoint_lost");
  EXPECT_EQ(run(other->next())->message, "space ran out");
}

TEST_F(ControlServerTest, WhatIsNoRequestEndsTheConnection) {
  for (const std::string& line : {std::string("GET / HTTP/1.1\r\n"), std::string("{}\n"),
                                  std::string("\n"), std::string(control_line_max + 70'000, 'a')}) {
    const auto client = connect();
    (void)run(client->send_line(line));
    const auto reply = run(client->next());
    ASSERT_TRUE(reply) << line.substr(0, 30);
    ASSERT_EQ(reply->kind, ControlReply::Kind::error);
    EXPECT_FALSE(reply->id);
    EXPECT_EQ(reply->error->kind(), ErrorKind::protocol);
    EXPECT_FALSE(run(client->next()));
  }
  EXPECT_TRUE(run(connect()->call("echo")));
}

TEST_F(ControlServerTest, AnOpenIdCannotBeUsedAgain) {
  const auto client = connect();
  ASSERT_TRUE(run(
      client->send_line("{\"id\": 5, \"method\": \"wait\"}\n{\"id\": 5, \"method\": \"echo\"}\n")));
  const auto reply = run(client->next());
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->error->kind(), ErrorKind::protocol);
  released_ = true;
  EXPECT_EQ(run(client->next())->kind, ControlReply::Kind::result);
}

TEST_F(ControlServerTest, OpenRequestsAreBounded) {
  const auto client = connect();
  for (std::size_t i = 0; i < control_calls_max; ++i)
    ASSERT_TRUE(run(client->start("wait", Json::object())));
  EXPECT_EQ(run(client->call("echo")).error().kind(), ErrorKind::limit);
  released_ = true;
  run(until_waiting(0));
  EXPECT_TRUE(run(client->call("echo")));
}

TEST_F(ControlServerTest, ConnectionsAreBounded) {
  std::vector<std::unique_ptr<ControlClient>> clients;
  for (std::size_t i = 0; i < control_connections_max; ++i) {
    clients.push_back(connect());
    ASSERT_TRUE(run(clients.back()->call("echo")));
  }
  EXPECT_FALSE(run(connect()->call("echo")));
  clients.pop_back();
  // The place is free as soon as the server has noticed.
  bool answered = false;
  for (int attempt = 0; attempt < 1000 && !answered; ++attempt) {
    answered = run(connect()->call("echo")).has_value();
    if (!answered) run(pause());
  }
  EXPECT_TRUE(answered);
}

TEST_F(ControlServerTest, AClientThatDoesNotReadIsDisconnected) {
  const auto client = connect();
  bool ended = false;
  for (int i = 0; i < 100 && !ended; ++i) ended = !run(client->start("large", Json::object()));
  while (run(client->next())) {
  }
  EXPECT_TRUE(run(connect()->call("echo")));
}

TEST_F(ControlServerTest, ClosingCancelsAnswersAndDisconnects) {
  const auto client = connect();
  const auto slow = MUST(run(client->start("wait", Json::object())));
  run(until_waiting(1));
  run(server_->close(5s));
  server_.reset();
  const auto ended = run(client->wait(slow));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(run(client->next()).error().kind(), ErrorKind::disconnected);
}

}  // namespace
}  // namespace berth::machine
