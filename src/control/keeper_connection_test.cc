#include "control/keeper_connection.h"

#include <filesystem>

#include <stdlib.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "control/keeper_failure.h"
#include "control/run_for_test.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

namespace asio = boost::asio;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using UnixProtocol = asio::local::stream_protocol;

/// One keeper's end of a socket: the test reads requests and says what is answered.
class KeeperConnectionTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/berth-keeper-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    acceptor_ = std::make_unique<UnixProtocol::acceptor>(io_, UnixProtocol::endpoint(path()));
    connection_ = MUST(run_for_test(io_, KeeperConnection::connect(path())));
    keeper_ = std::make_unique<UnixProtocol::socket>(acceptor_->accept());
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string path() const { return directory_ + "/control"; }

  Async<json> next_request() {
    const std::size_t length = co_await asio::async_read_until(
        *keeper_, asio::dynamic_buffer(received_), '\n', asio::use_awaitable);
    const json request = json::parse(received_.substr(0, length));
    received_.erase(0, length);
    co_return request;
  }
  json request() { return run_for_test(io_, next_request()); }
  void say(const std::string& text) { asio::write(*keeper_, asio::buffer(text)); }

  /// Starts a call; its end is in `ended`.
  void call(const std::string& method, CallOptions options = {}) {
    asio::co_spawn(io_, connection_->call(method, json::object(), std::move(options)),
                   [this](const std::exception_ptr&, Result<json> result) {
                     ended_.push_back(std::move(result));
                   });
  }
  Result<json> wait_for_end() {
    while (ended_.empty()) {
      if (io_.stopped()) io_.restart();  // it had run out of work
      io_.run_one();
    }
    auto result = std::move(ended_.front());
    ended_.erase(ended_.begin());
    return result;
  }

  std::string directory_;
  asio::io_context io_{1};
  std::unique_ptr<UnixProtocol::acceptor> acceptor_;
  std::unique_ptr<UnixProtocol::socket> keeper_;
  std::shared_ptr<KeeperConnection> connection_;
  std::string received_;
  std::vector<Result<json>> ended_;
};

TEST_F(KeeperConnectionTest, AnswersReachTheirCallsInWhateverOrderTheyCome) {
  call("first");
  call("second");
  const json first = request();
  const json second = request();
  EXPECT_EQ(first["method"], "first");
  say(machine::format_result(second["id"], {{"n", 2}}));
  EXPECT_EQ((*wait_for_end())["n"], 2);
  say(machine::format_error(first["id"].get<std::uint64_t>(),
                            Error(ErrorKind::full_backup_required, "because")));
  const auto refused = wait_for_end();
  EXPECT_EQ(refused.error().kind(), ErrorKind::full_backup_required);
  EXPECT_EQ(refused.error().message(), "because");
}

TEST_F(KeeperConnectionTest, ProgressAndEventsAreTold) {
  std::vector<std::uint64_t> told;
  std::vector<std::string> events;
  connection_->set_event_handler([&](const std::string& event, const std::string& message) {
    events.push_back(event + ": " + message);
  });
  call("volume.populate", {.progress = [&](const machine::ControlProgress& progress) {
         told.push_back(progress.done);
       }});
  const json asked = request();
  EXPECT_EQ(asked["params"]["progress"], true);
  say(machine::format_progress(asked["id"], {.phase = "copying", .done = 5, .total = 10}));
  say(machine::format_event("checkpoint_lost", "no space"));
  say(machine::format_result(asked["id"], json::object()));
  EXPECT_TRUE(wait_for_end());
  EXPECT_THAT(told, ElementsAre(5));
  EXPECT_THAT(events, ElementsAre("checkpoint_lost: no space"));
}

TEST_F(KeeperConnectionTest, AStopIsPassedOnAndTheAnswerSaysHowItEnded) {
  std::stop_source stop;
  call("checkpoint.export", {.timeout = Milliseconds(0), .stop = stop.get_token()});
  const json asked = request();
  stop.request_stop();
  const json cancel = request();
  EXPECT_EQ(cancel["method"], "cancel");
  EXPECT_EQ(cancel["params"]["id"], asked["id"]);
  say(machine::format_error(asked["id"].get<std::uint64_t>(),
                            Error(ErrorKind::cancelled, "as you wish")));
  EXPECT_EQ(wait_for_end().error().kind(), ErrorKind::cancelled);
}

TEST_F(KeeperConnectionTest, ACallThatIsNotAnsweredTimesOut) {
  call("cut.begin", {.timeout = Milliseconds(20)});
  EXPECT_EQ(wait_for_end().error().kind(), ErrorKind::timed_out);
  const json asked = request();
  EXPECT_EQ(request()["method"], "cancel");
  // A late answer disturbs nobody.
  say(machine::format_result(asked["id"], json::object()));
  call("hello");
  say(machine::format_result(request()["id"], {{"pid", 1}}));
  EXPECT_EQ((*wait_for_end())["pid"], 1);
}

TEST_F(KeeperConnectionTest, AKeeperThatGoesEndsEveryCall) {
  call("first");
  call("second");
  request();
  keeper_->close();
  EXPECT_EQ(wait_for_end().error().kind(), ErrorKind::disconnected);
  EXPECT_EQ(wait_for_end().error().kind(), ErrorKind::disconnected);
  EXPECT_FALSE(connection_->is_open());
  call("third");
  EXPECT_EQ(wait_for_end().error().kind(), ErrorKind::disconnected);
}

TEST_F(KeeperConnectionTest, APeerThatBreaksTheProtocolIsDisconnected) {
  call("first");
  say("this is not JSON\n");
  EXPECT_EQ(wait_for_end().error().kind(), ErrorKind::disconnected);
}

TEST_F(KeeperConnectionTest, ThePeerIsKnownByTheKernel) {
  EXPECT_EQ(*connection_->peer_pid(), ::getpid());
}

TEST_F(KeeperConnectionTest, NobodyThereIsDisconnected) {
  acceptor_->close();
  EXPECT_EQ(run_for_test(io_, KeeperConnection::connect(path())).error().kind(),
            ErrorKind::disconnected);
  EXPECT_EQ(run_for_test(io_, KeeperConnection::connect("/nonexistent")).error().kind(),
            ErrorKind::disconnected);
  EXPECT_EQ(run_for_test(io_, KeeperConnection::connect(std::string(200, 'x'))).error().kind(),
            ErrorKind::invalid_argument);
}

TEST(KeeperFailureTest, IsTheLastErrorOfItsLog) {
  const Error error = keeper_failure(
      "2026-11-23T07:42:30.740 info keeper d1: the live map is in /dev/shm\n"
      "2026-11-23T07:42:30.742 error keeper d1: in_use: cannot keep the volume 'd1': another "
      "keeper has it\n");
  EXPECT_EQ(error.kind(), ErrorKind::in_use);
  EXPECT_EQ(error.message(), "cannot keep the volume 'd1': another keeper has it");
}

TEST(KeeperFailureTest, IsInternalWhereNothingWasSaid) {
  EXPECT_EQ(keeper_failure("").kind(), ErrorKind::internal);
  EXPECT_THAT(keeper_failure("terminate called\n").message(), HasSubstr("terminate called"));
  EXPECT_EQ(keeper_failure("x error keeper d1: ").kind(), ErrorKind::internal);
  EXPECT_EQ(keeper_failure("x error keeper d1: odd_kind: y").kind(), ErrorKind::internal);
}

}  // namespace
}  // namespace berth::control
