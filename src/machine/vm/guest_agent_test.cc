#include "machine/vm/guest_agent.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "async/test_support.h"
#include "machine/vm/fake_agent.h"

namespace berth::machine {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class GuestAgentTest : public LoopTest {
 protected:
  ~GuestAgentTest() override {
    run(*loop_, agent_.close());
    run(*loop_, guest_->close());
  }

  Result<Json> call(std::string command, Duration timeout = 20s) {
    return run(*loop_, agent_.call(std::move(command), nullptr, timeout));
  }
  /// A call whose outcome is kept.
  Task<> keep(std::string command, std::optional<Result<Json>>& into, Duration timeout = 20s) {
    into = co_await agent_.call(std::move(command), nullptr, timeout);
  }
  Task<> keep_shutdown(std::string mode, std::optional<Result<void>>& into) {
    into = co_await agent_.shutdown(std::move(mode), 20s);
  }
  template <typename Predicate>
  void until(Predicate predicate) {
    run(*loop_, wait_until(std::move(predicate)));
  }
  template <typename Predicate>
  Task<> wait_until(Predicate predicate) {
    while (!predicate()) co_await guest_->changed().wait();
  }
  /// What another client sends before it goes.
  Task<Result<void>> leave_behind(std::string bytes) {
    const auto stream = CO_TRY(co_await connect_unix(*loop_, path_, 10s));
    const Bytes part = as_bytes(bytes);
    CO_TRY(co_await stream->write_all(std::span(&part, 1)));
    co_return Result<void>{};
  }

  ScratchDirectory directory_;
  std::string path_ = directory_ / "agent.sock";
  std::optional<FakeAgent> guest_{std::in_place, *loop_, path_};
  GuestAgent agent_{*loop_, path_};
};

TEST_F(GuestAgentTest, AsksAndDisconnects) {
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
  until([this] { return !guest_->has_client(); });
  EXPECT_EQ(guest_->clients(), 2U);
  EXPECT_THAT(guest_->commands(), ElementsAre("guest-ping", "guest-ping"));
}

TEST_F(GuestAgentTest, TellsTheTime) {
  std::int64_t told = 0;
  guest_->on("guest-set-time", [&told](const Json& arguments) {
    told = arguments.value("time", std::int64_t{0});
    return std::string("{\"return\": {}}\n");
  });
  EXPECT_TRUE(
      run(*loop_, agent_.set_time(std::chrono::system_clock::time_point(1700000000s), 20s)));
  EXPECT_EQ(told, 1'700'000'000'000'000'000);
}

TEST_F(GuestAgentTest, FreezesAndThaws) {
  EXPECT_EQ(MUST(run(*loop_, agent_.is_frozen(20s))), false);
  EXPECT_EQ(MUST(run(*loop_, agent_.freeze(20s))), 2U);
  EXPECT_EQ(MUST(run(*loop_, agent_.is_frozen(20s))), true);
  const auto again = run(*loop_, agent_.freeze(20s));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().kind(), ErrorKind::precondition);
  EXPECT_THAT(again.error().message(), HasSubstr("the agent is in frozen state"));
  EXPECT_EQ(MUST(run(*loop_, agent_.thaw(20s))), 2U);
  EXPECT_EQ(MUST(run(*loop_, agent_.thaw(20s))), 0U);
}

TEST_F(GuestAgentTest, StaysConnectedFromTheFreezeToTheThaw) {
  ASSERT_TRUE(run(*loop_, agent_.freeze(20s)));
  ASSERT_TRUE(run(*loop_, agent_.is_frozen(20s)));
  EXPECT_TRUE(guest_->has_client());
  ASSERT_TRUE(run(*loop_, agent_.thaw(20s)));
  EXPECT_EQ(guest_->clients(), 1U);
  until([this] { return !guest_->has_client(); });
}

TEST_F(GuestAgentTest, OthersGetTheirTurnWhenTheThawTakesLong) {
  GuestAgent agent(*loop_, path_, 5ms);
  ASSERT_TRUE(run(*loop_, agent.freeze(20s)));
  until([this] { return !guest_->has_client(); });
  EXPECT_TRUE(guest_->is_frozen);
  ASSERT_TRUE(run(*loop_, agent.thaw(20s)));
  EXPECT_EQ(guest_->clients(), 2U);
  run(*loop_, agent.close());
}

TEST_F(GuestAgentTest, ClosingEndsTheConnectionOfAFrozenGuest) {
  ASSERT_TRUE(run(*loop_, agent_.freeze(20s)));
  run(*loop_, agent_.close());
  until([this] { return !guest_->has_client(); });
}

TEST_F(GuestAgentTest, AHookThatFailsIsAPreconditionWithItsWords) {
  guest_->on(
      "guest-fsfreeze-freeze",
      R"({"error": {"class": "GenericError", "desc": "fsfreeze hook has failed with status 1"}})"
      "\n");
  const auto frozen = run(*loop_, agent_.freeze(20s));
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().kind(), ErrorKind::precondition);
  EXPECT_THAT(frozen.error().message(), HasSubstr("fsfreeze hook has failed with status 1"));
  until([this] { return !guest_->has_client(); });
}

TEST_F(GuestAgentTest, GetsPastHalfARequestOfAnEarlierClient) {
  MUST(run(*loop_, leave_behind(R"({"execute": "guest-shutd)")));
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
  EXPECT_THAT(guest_->commands(), ElementsAre("guest-ping"));
}

TEST_F(GuestAgentTest, GetsPastAnswersThatNobodyTook) {
  guest_->say("{\"return\": 77}\n\xff{\"return\": 5}\n{\"retu");
  MUST(run(*loop_, leave_behind("{\"execute\": \"guest-fsfreeze-status\"}\n"
                                "\xff{\"execute\": \"guest-sync-delimited\", "
                                "\"arguments\": {\"id\": 9}}\n")));
  until([this] { return guest_->was_asked("guest-fsfreeze-status"); });
  EXPECT_EQ(MUST(call("guest-ping")), Json::object());
}

TEST_F(GuestAgentTest, AnAnswerThatIsLateIsTakenSoThatTheAgentNeedNotTryForever) {
  guest_->set_running(false);
  EXPECT_EQ(run(*loop_, agent_.ping(5ms)).error().kind(), ErrorKind::timed_out);
  until([this] { return guest_->has_client(); });
  guest_->set_running(true);
  guest_->say("{\"return\": {}}\n");
  until([this] { return !guest_->has_client() && !guest_->has_to_say(); });
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
}

TEST_F(GuestAgentTest, WhoWaitsForALateAnswerGivesWayToTheNextCall) {
  guest_->set_running(false);
  for (int repetition = 0; repetition < 3; ++repetition) {
    EXPECT_EQ(run(*loop_, agent_.ping(5ms)).error().kind(), ErrorKind::timed_out);
    until([this] { return guest_->has_client(); });
  }
  guest_->set_running(true);
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
  until([this] { return !guest_->has_client(); });
}

TEST_F(GuestAgentTest, WithoutAnAgentACallTimesOutAndALaterOneWorks) {
  guest_->set_running(false);
  const auto ping = run(*loop_, agent_.ping(5ms));
  ASSERT_FALSE(ping);
  EXPECT_EQ(ping.error().kind(), ErrorKind::timed_out);
  EXPECT_THAT(ping.error().message(), HasSubstr("guest-ping"));
  guest_->set_running(true);
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
}

TEST_F(GuestAgentTest, WhatTimedOutBeforeItsTurnIsNeverAsked) {
  guest_->set_running(false);
  EXPECT_EQ(run(*loop_, agent_.freeze(5ms)).error().kind(), ErrorKind::timed_out);
  guest_->set_running(true);
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
  EXPECT_THAT(guest_->commands(), ElementsAre("guest-ping"));
  EXPECT_FALSE(guest_->is_frozen);
}

TEST_F(GuestAgentTest, AnAnswerAfterTheTimeIsNotTakenForTheNextOne) {
  guest_->on("slow", [](const Json&) { return std::nullopt; });
  EXPECT_EQ(call("slow", 5ms).error().kind(), ErrorKind::timed_out);
  guest_->say("{\"return\": \"late\"}\n");
  EXPECT_EQ(MUST(call("guest-fsfreeze-status")), "thawed");
}

TEST_F(GuestAgentTest, WithoutQemuItIsDisconnected) {
  GuestAgent nobody(*loop_, directory_ / "missing.sock");
  const auto missing = run(*loop_, nobody.ping(20s));
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind(), ErrorKind::disconnected);
  EXPECT_THAT(missing.error().message(), HasSubstr("missing.sock"));
  run(*loop_, nobody.close());

  guest_->on("slow", [](const Json&) { return std::nullopt; });
  std::optional<Result<Json>> outcome;
  Gate gate(*loop_);
  gate.spawn(keep("slow", outcome));
  until([this] { return guest_->was_asked("slow"); });
  run(*loop_, guest_->close());
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome->error().kind(), ErrorKind::disconnected);
}

TEST_F(GuestAgentTest, CallsWaitForTheirTurnAndTheirTimeRuns) {
  guest_->on("slow", [](const Json&) { return std::nullopt; });
  std::optional<Result<Json>> slow;
  std::optional<Result<Json>> late;
  std::optional<Result<Json>> next;
  Gate gate(*loop_);
  gate.spawn(keep("slow", slow));
  gate.spawn(keep("late", late, 5ms));
  gate.spawn(keep("guest-ping", next));
  until([this] { return guest_->was_asked("slow"); });
  run(*loop_, [](UringLoop& loop, std::optional<Result<Json>>& outcome) -> Task<> {
    while (!outcome) co_await loop.sleep(1ms);
  }(*loop_, late));
  EXPECT_EQ(late->error().kind(), ErrorKind::timed_out);
  EXPECT_FALSE(slow);
  EXPECT_FALSE(next);
  guest_->say("{\"return\": 1}\n");
  run(*loop_, gate.drained());
  EXPECT_EQ(**slow, 1);
  EXPECT_TRUE(*next);
  EXPECT_THAT(guest_->commands(), ElementsAre("slow", "guest-ping"));
}

TEST_F(GuestAgentTest, ClosingCancelsCalls) {
  guest_->on("slow", [](const Json&) { return std::nullopt; });
  std::optional<Result<Json>> active;
  std::optional<Result<Json>> waiting;
  Gate gate(*loop_);
  gate.spawn(keep("slow", active));
  gate.spawn(keep("guest-ping", waiting));
  until([this] { return guest_->was_asked("slow"); });
  run(*loop_, agent_.close());
  run(*loop_, gate.drained());
  EXPECT_EQ(active->error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(waiting->error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(call("guest-ping").error().kind(), ErrorKind::cancelled);
}

TEST_F(GuestAgentTest, AnAnswerHasALimit) {
  guest_->on("large", "{\"return\": \"" + std::string(agent_answer_max, 'a') + "\"}\n");
  const auto answer = call("large");
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().kind(), ErrorKind::limit);
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
}

TEST_F(GuestAgentTest, AGuestThatSaysNothingOfUseHasALimit) {
  guest_->set_running(false);
  guest_->say(std::string(agent_skipped_max + (1 << 20), 'a'));
  EXPECT_EQ(call("guest-ping").error().kind(), ErrorKind::limit);
}

TEST_F(GuestAgentTest, WhatNoAgentSaysIsRefused) {
  for (const std::string& bytes : {
           std::string("garbage\n"),
           std::string("\x00\n", 2),
           std::string("[]\n"),
           std::string("{}\n"),
           std::string("{\"error\": {}}\n"),
           std::string("{\"error\": {\"desc\": 1}}\n"),
           std::string("{\"return\": ") + std::string(100, '[') + std::string(100, ']') + "}\n",
       }) {
    guest_->on("hostile", bytes);
    EXPECT_EQ(call("hostile").error().kind(), ErrorKind::protocol) << bytes;
  }
  for (const char* bytes : {"{\"return\": -1}\n", "{\"return\": 1.5}\n", "{\"return\": \"2\"}\n",
                            "{\"return\": 4294967296}\n", "{\"return\": null}\n"}) {
    guest_->on("guest-fsfreeze-thaw", std::string(bytes));
    EXPECT_EQ(run(*loop_, agent_.thaw(20s)).error().kind(), ErrorKind::protocol) << bytes;
  }
  guest_->on("guest-fsfreeze-status", "{\"return\": \"ice\"}\n");
  EXPECT_EQ(run(*loop_, agent_.is_frozen(20s)).error().kind(), ErrorKind::protocol);
  guest_->on("guest-network-get-interfaces", "{\"return\": {}}\n");
  EXPECT_EQ(run(*loop_, agent_.addresses(20s)).error().kind(), ErrorKind::protocol);
  EXPECT_TRUE(run(*loop_, agent_.ping(20s)));
}

TEST_F(GuestAgentTest, AGuestsWordsDoNothingToATerminal) {
  guest_->on("hostile",
             R"({"error": {"class": "GenericError", "desc": "\u001b]0;title\u0007\nnew line"}})"
             "\n");
  const auto answer = call("hostile");
  ASSERT_FALSE(answer);
  EXPECT_THAT(answer.error().message(), Not(HasSubstr("\x1b")));
  EXPECT_THAT(answer.error().message(), Not(HasSubstr("\n")));
}

TEST_F(GuestAgentTest, TellsTheGuestsAddresses) {
  guest_->on(
      "guest-network-get-interfaces",
      R"({"return": [{"name": "eth0", "hardware-address": "52:54:00:AB:cd:01", )"
      R"("ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.0.2.15", "prefix": 24}]}]})"
      "\n");
  EXPECT_THAT(MUST(run(*loop_, agent_.addresses(20s))),
              ElementsAre(GuestAddress{"eth0", "52:54:00:ab:cd:01", "10.0.2.15", 24}));
}

TEST_F(GuestAgentTest, AShutdownStaysConnectedUntilQemuHasGone) {
  std::string mode;
  guest_->on("guest-shutdown", [&mode](const Json& arguments) -> std::optional<std::string> {
    mode = arguments["mode"].get<std::string>();
    return std::nullopt;
  });
  std::optional<Result<void>> outcome;
  Gate gate(*loop_);
  gate.spawn(keep_shutdown("powerdown", outcome));
  until([this] { return guest_->was_asked("guest-ping"); });
  guest_->say("{\"return\": \"what it says as it ends\"}\n");
  run(*loop_, [](UringLoop& loop) -> Task<> { co_await loop.sleep(5ms); }(*loop_));
  EXPECT_FALSE(outcome);
  EXPECT_TRUE(guest_->has_client());
  run(*loop_, guest_->close());
  run(*loop_, gate.drained());
  EXPECT_TRUE(*outcome);
  EXPECT_EQ(mode, "powerdown");
}

TEST_F(GuestAgentTest, AShutdownThatTakesLongerThanItsTimeIsNoError) {
  guest_->on("guest-shutdown", [](const Json&) { return std::nullopt; });
  EXPECT_TRUE(run(*loop_, agent_.shutdown("reboot", 50ms)));
  until([this] { return !guest_->has_client(); });
}

TEST_F(GuestAgentTest, AShutdownThatTheAgentRefusesIsAPrecondition) {
  guest_->on("guest-shutdown",
             "{\"error\": {\"class\": \"GenericError\", \"desc\": \"mode is invalid\"}}\n");
  EXPECT_EQ(run(*loop_, agent_.shutdown("sleep", 300ms)).error().kind(), ErrorKind::precondition);
}

TEST_F(GuestAgentTest, AShutdownThatTheAgentDoesNotSurviveIsDone) {
  const auto silent = [](const Json&) { return std::nullopt; };
  guest_->on("guest-shutdown", silent);
  guest_->on("guest-ping", silent);
  EXPECT_TRUE(run(*loop_, agent_.shutdown("powerdown", 50ms)));
}

TEST_F(GuestAgentTest, AShutdownThatNobodyHeardTimesOut) {
  guest_->set_running(false);
  EXPECT_EQ(run(*loop_, agent_.shutdown("powerdown", 5ms)).error().kind(), ErrorKind::timed_out);
}

TEST_F(GuestAgentTest, WhereTooManyWaitForTheSocketACallTimesOutOrIsCancelled) {
  const std::string path = directory_ / "busy.sock";
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  ASSERT_LT(path.size(), sizeof address.sun_path);
  std::memcpy(address.sun_path, path.data(), path.size());
  const Fd listening(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listening.get(), 0), 0);  // one may wait
  const auto first = MUST(run(*loop_, connect_unix(*loop_, path, 10s)));

  GuestAgent busy(*loop_, path);
  EXPECT_EQ(run(*loop_, busy.ping(5ms)).error().kind(), ErrorKind::timed_out);
  std::optional<Result<void>> outcome;
  Gate gate(*loop_);
  gate.spawn([](GuestAgent& agent, std::optional<Result<void>>& into) -> Task<> {
    into = co_await agent.ping(20s);
  }(busy, outcome));
  run(*loop_, busy.close());
  run(*loop_, gate.drained());
  EXPECT_EQ(outcome->error().kind(), ErrorKind::cancelled);
}

}  // namespace
}  // namespace berth::machine
