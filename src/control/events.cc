#include "control/events.h"

#include <algorithm>
#include <chrono>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/units.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

constexpr std::size_t events_remembered_max = 1024;

nlohmann::json text_or_null(const std::string& text) {
  return text.empty() ? nlohmann::json() : nlohmann::json(text);
}

}  // namespace

struct EventLog::State {
  explicit State(Executor executor) : changed(std::move(executor)) {}
  std::deque<std::string> lines;  // the last of them has the number `last`
  std::uint64_t last = 0;
  bool closed = false;
  Wakeup changed;
};

namespace {

class Follower final : public LineSource {
 public:
  Follower(std::shared_ptr<EventLog::State> state, std::uint64_t after)
      : state_(std::move(state)), after_(after) {}

  Async<std::optional<std::string>> next() override {
    const auto state = state_;
    while (!state->closed && !closed_ && after_ >= state->last) co_await state->changed.wait();
    if (state->closed || closed_) co_return std::nullopt;
    const std::uint64_t first = state->last - state->lines.size() + 1;
    after_ = std::max(after_ + 1, first);
    co_return state->lines[after_ - first];
  }

  void close() override {
    closed_ = true;
    state_->changed.notify();
  }

 private:
  std::shared_ptr<EventLog::State> state_;
  std::uint64_t after_;
  bool closed_ = false;
};

}  // namespace

EventLog::EventLog(Executor executor) : state_(std::make_shared<State>(std::move(executor))) {}
EventLog::~EventLog() { close(); }

void EventLog::publish(std::string_view kind, EventSubject subject, std::string message) {
  const std::string& whose = !subject.container.empty() ? subject.container
                             : !subject.machine.empty() ? subject.machine
                                                        : subject.volume;
  log_info("{}{}{}: {}", kind, whose.empty() ? "" : " ", whose, message);
  state_->lines.push_back(
      machine::format_json({{"sequence", ++state_->last},
                            {"at", format_time(std::chrono::system_clock::now())},
                            {"kind", kind},
                            {"volume", text_or_null(subject.volume)},
                            {"job", text_or_null(subject.job)},
                            {"machine", text_or_null(subject.machine)},
                            {"container", text_or_null(subject.container)},
                            {"message", std::move(message)}}));
  if (state_->lines.size() > events_remembered_max) state_->lines.pop_front();
  state_->changed.notify();
}

std::unique_ptr<LineSource> EventLog::follow(std::optional<std::uint64_t> since) {
  return std::make_unique<Follower>(state_, std::min(since.value_or(state_->last), state_->last));
}

std::uint64_t EventLog::last() const { return state_->last; }

void EventLog::close() {
  state_->closed = true;
  state_->changed.notify();
}

}  // namespace berth::control
