#include "container/agent_link.h"

#include <gmock/gmock.h>

#include "async/test_support.h"
#include "container/fake_guest.h"

namespace berth::container {
namespace {

using agent::FieldWriter;
using agent::Operation;
using agent::Tag;
using testing::HasSubstr;
using namespace std::chrono_literals;

class AgentLinkTest : public LoopTest {
 protected:
  ~AgentLinkTest() override { run(*loop_, guest_.close()); }

  Task<Result<std::unique_ptr<AgentLink>>> connect(Duration patience = 10s) {
    return AgentLink::connect(
        *loop_, path_, patience,
        {.event =
             [this](agent::EventKind kind, std::uint32_t channel, const agent::Fields& fields) {
               EXPECT_EQ(kind, agent::EventKind::ended);
               events_.emplace_back(channel, MUST(fields.number(Tag::exit_code)));
             },
         .closed = [this] { ++closed_; }});
  }

  ScratchDirectory directory_;
  std::string path_ = directory_ / "agent.sock";
  FakeGuest guest_{*loop_, path_};
  std::vector<std::pair<std::uint32_t, std::uint64_t>> events_;
  int closed_ = 0;
};

TEST_F(AgentLinkTest, GreetsAndAsks) {
  guest_.on(Operation::read_file, [](const agent::Fields& request, FieldWriter& answer) {
    answer.text(Tag::content, MUST(request.text(Tag::path)) + "!");
    return true;
  });
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    EXPECT_EQ(link->welcome().kernel, "6.1.0-test");
    EXPECT_EQ(link->welcome().boot_error, "");
    FieldWriter request(Operation::read_file);
    request.text(Tag::path, "/etc/x");
    const auto answer = CO_TRY(co_await link->request(std::move(request), 5s));
    EXPECT_EQ(as_text(answer.fields().raw(Tag::content)), "/etc/x!");
    co_await link->close();
    EXPECT_FALSE(link->is_open());
    EXPECT_EQ((co_await link->request(FieldWriter(Operation::sync), 5s)).error().kind(),
              ErrorKind::disconnected);
    co_return Result<void>{};
  }(*this));
  EXPECT_EQ(closed_, 1);
}

TEST_F(AgentLinkTest, WhatTheAgentRefusesHasItsKindAndItsOtherFields) {
  guest_.on(Operation::start, [](const agent::Fields&, FieldWriter& answer) {
    agent::write_error(answer, Error(ErrorKind::not_found, "no such program"));
    answer.number(Tag::shell_status, 127);
    return true;
  });
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    const auto refused = co_await link->request(FieldWriter(Operation::start), 5s);
    EXPECT_EQ(refused.error().kind(), ErrorKind::not_found);
    EXPECT_THAT(refused.error().message(), HasSubstr("no such program"));
    const auto answer = CO_TRY(co_await link->ask(FieldWriter(Operation::start), 5s));
    EXPECT_EQ(MUST(answer.fields().number(Tag::shell_status)), 127U);
    co_await link->close();
    co_return Result<void>{};
  }(*this));
}

TEST_F(AgentLinkTest, AnAgentThatSaysNothingIsGivenUp) {
  guest_.set_silent(true);
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = co_await test.connect(100ms);
    EXPECT_EQ(link.error().kind(), ErrorKind::timed_out);
    co_return Result<void>{};
  }(*this));
  EXPECT_EQ(closed_, 0) << "what never was open cannot be closed";
}

TEST_F(AgentLinkTest, AnAnswerThatDoesNotComeIsGivenUpAndIsNoHarmLater) {
  guest_.on(Operation::sync, [](const agent::Fields&, FieldWriter&) { return false; });
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    EXPECT_EQ((co_await link->request(FieldWriter(Operation::sync), 50ms)).error().kind(),
              ErrorKind::timed_out);
    test.guest_.session().answer(1, FieldWriter());  // late
    EXPECT_TRUE(co_await link->request(FieldWriter(Operation::list), 5s));
    co_await link->close();
    co_return Result<void>{};
  }(*this));
}

TEST_F(AgentLinkTest, ABreakEndsWhatIsOpenAndIsToldOnce) {
  guest_.on(Operation::sync, [](const agent::Fields&, FieldWriter&) { return false; });
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    int changes = 0;
    (void)CO_TRY(link->open_stream(4, [&changes] { ++changes; }));
    Deadline later(*test.loop_, 50ms, [&] { test.guest_.hang_up(); });
    EXPECT_EQ((co_await link->request(FieldWriter(Operation::sync), 20s)).error().kind(),
              ErrorKind::disconnected);
    co_await later.stop();
    EXPECT_EQ(changes, 1);
    EXPECT_EQ(test.closed_, 1);
    co_await link->close();
    EXPECT_EQ(test.closed_, 1);
    co_return Result<void>{};
  }(*this));
}

TEST_F(AgentLinkTest, BytesThatAreNoFramesEndIt) {
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    test.guest_.say(std::vector<std::byte>(100, std::byte{0x5A}));
    while (link->is_open()) co_await test.loop_->sleep(5ms);
    EXPECT_EQ(test.closed_, 1);
    co_await link->close();
    co_return Result<void>{};
  }(*this));
}

TEST_F(AgentLinkTest, EventsComeInOrder) {
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    for (std::uint32_t process = 1; process <= 3; ++process) {
      FieldWriter event(agent::EventKind::ended);
      event.number(Tag::process, process).number(Tag::exit_code, process * 10);
      test.guest_.send_event(process, event);
    }
    while (test.events_.size() < 3) co_await test.loop_->sleep(5ms);
    co_await link->close();
    co_return Result<void>{};
  }(*this));
  EXPECT_THAT(events_,
              testing::ElementsAre(std::pair{1U, 10U}, std::pair{2U, 20U}, std::pair{3U, 30U}));
}

TEST_F(AgentLinkTest, WhileItIsHeldNothingGoesToTheGuest) {
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    agent::Stream* far = test.guest_.session().open(4);
    far->in.emplace(0, agent::stream_window, agent::IncomingStream::Gaps::refused);
    agent::Stream* near = CO_TRY(link->open_stream(4, [] {}));
    near->out.emplace(0, agent::stream_window);
    CO_TRY(co_await link->hold(5s));
    EXPECT_TRUE(link->is_quiet());
    near->out->add(as_bytes(std::string_view("later")));
    link->wake();
    EXPECT_EQ((co_await link->request(FieldWriter(Operation::sync), 50ms)).error().kind(),
              ErrorKind::timed_out);
    EXPECT_TRUE(far->in->readable().empty());
    Deadline later(*test.loop_, 20ms, [&] { link->release(); });
    CO_TRY(co_await link->request(FieldWriter(Operation::sync), 5s));
    co_await later.stop();
    EXPECT_FALSE(link->is_quiet());
    while (far->in->readable().empty()) co_await test.loop_->sleep(1ms);
    EXPECT_EQ(as_text(far->in->readable()), "later");
    co_await link->close();
    co_return Result<void>{};
  }(*this));
}

TEST_F(AgentLinkTest, AnAgentThatIsSilentIsHeldAllTheSame) {
  guest_.on(Operation::list, [](const agent::Fields&, FieldWriter&) { return false; });
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    EXPECT_EQ((co_await link->hold(50ms)).error().kind(), ErrorKind::timed_out);
    EXPECT_FALSE(link->is_quiet());
    EXPECT_FALSE(co_await link->request(FieldWriter(Operation::sync), 50ms));
    link->release();
    EXPECT_TRUE(co_await link->request(FieldWriter(Operation::sync), 5s));
    co_await link->close();
    co_return Result<void>{};
  }(*this));
}

constexpr std::size_t total = std::size_t{1} << 20;  // far more than any window

/// Both ways at once.
TEST_F(AgentLinkTest, StreamsCarryEverything) {
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = CO_TRY(co_await test.connect());
    // The guest echoes.
    agent::Stream* far = test.guest_.session().open(4);
    far->in.emplace(0, agent::stream_window, agent::IncomingStream::Gaps::refused);
    far->out.emplace();
    Event changed(*test.loop_);
    agent::Stream* near = CO_TRY(link->open_stream(4, [&changed] { changed.notify_all(); }));
    near->out.emplace(0, agent::stream_window);
    near->in.emplace(0, agent::stream_window, agent::IncomingStream::Gaps::refused);
    link->wake();
    std::size_t sent = 0;
    std::size_t got = 0;
    while (got < total) {
      while (sent < total && near->out->room() > 0) {
        const std::vector<std::byte> piece(std::min(near->out->room(), total - sent),
                                           static_cast<std::byte>(sent >> 12));
        near->out->add(piece);
        sent += piece.size();
      }
      const Bytes echo = far->in->readable();
      const std::size_t count = std::min(echo.size(), far->out->room());
      far->out->add(echo.first(count));
      far->in->consume(count);
      got += near->in->readable().size();
      near->in->consume(near->in->readable().size());
      link->wake();
      test.guest_.wake();
      co_await test.loop_->sleep(1ms);
    }
    EXPECT_EQ(got, total);
    link->close_stream(4);
    EXPECT_EQ(link->stream(4), nullptr);
    co_await link->close();
    co_return Result<void>{};
  }(*this));
}

TEST_F(AgentLinkTest, NobodyThereIsDisconnected) {
  run_test(*loop_, [](auto& test) -> Task<Result<void>> {
    const auto link = co_await AgentLink::connect(*test.loop_, test.directory_ / "none", 1s, {});
    EXPECT_EQ(link.error().kind(), ErrorKind::disconnected);
    co_return Result<void>{};
  }(*this));
}

}  // namespace
}  // namespace berth::container
