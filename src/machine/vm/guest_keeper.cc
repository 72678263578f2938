#include "machine/vm/guest_keeper.h"

#include <array>
#include <csignal>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/directories.h"
#include "async/socket.h"
#include "base/log.h"
#include "base/units.h"
#include "machine/layout.h"
#include "machine/vm/log_file.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr Duration last_answers_timeout = std::chrono::seconds(2);
constexpr Duration log_interval = std::chrono::seconds(5);
constexpr Duration first_start_patience =
    std::chrono::seconds(60);  // of a keeper nobody asks for anything
constexpr std::size_t remembered_events_max = 32;

}  // namespace

GuestKeeper::GuestKeeper(UringLoop& loop, Signals& signals, Identity identity)
    : loop_(loop),
      signals_(signals),
      identity_(std::move(identity)),
      started_at_(loop.wall_time()),
      tasks_(loop),
      moved_(loop),
      server_(loop),
      events_(server_, loop, remembered_events_max) {
  server_.add("hello", [this](ControlCall& /*call*/) { return hello(); });
  server_.add("shutdown", [this](ControlCall& /*call*/) { return shutdown(); });
}

Task<Result<void>> GuestKeeper::run() {
  outcome_ = take_name();
  if (outcome_) outcome_ = serve_others();
  if (outcome_) outcome_ = serve_control();
  if (!outcome_) {
    co_await close_guest();
    co_return outcome_;
  }
  tasks_.spawn(watch_signals());
  tasks_.spawn(watch_patience());
  tasks_.spawn(watch_logs());
  const auto adopted = co_await adopt();
  if (!adopted) outcome_ = failure(adopted.error());
  if (outcome_) {
    is_over_ = *adopted && !is_on();
    open();
    is_open_ = true;
    tasks_.spawn(watch_guest());
    while (!stopping_) co_await moved_.wait();
  }
  co_await say_goodbye();
  co_return outcome_;
}

Result<void> GuestKeeper::take_name() {
  TRY(make_directories(identity_.directory));
  lock_ = TRY(take_lock_file(identity_.lock_file, fmt::format("another keeper has the {} '{}'",
                                                              identity_.noun, identity_.name)));
  return {};
}

Result<void> GuestKeeper::serve_control() {
  // The name is ours: a socket that is there is a dead keeper's.
  ::unlink(identity_.control_socket.c_str());
  server_.serve(TRY(SocketListener::listen_unix(loop_, identity_.control_socket)));
  return {};
}

Task<> GuestKeeper::watch_signals() {
  while (true) {
    const auto number = co_await signals_.next();
    if (!number) co_return;
    request_stop(*number == SIGTERM ? "SIGTERM" : "SIGINT");
  }
}

/// A guest that has ended needs no keeper.
Task<> GuestKeeper::watch_guest() {
  while (!stopping_ && !is_on()) co_await guest_changed();
  while (!stopping_ && is_on()) co_await guest_changed();
  if (!stopping_) co_await everybody_heard();
  request_stop(fmt::format("the {}'s end", identity_.noun));
}

Task<> GuestKeeper::watch_patience() {
  const Instant deadline = loop_.now() + first_start_patience;
  while (!stopping_ && !is_on() && loop_.now() < deadline)
    co_await loop_.sleep(std::chrono::milliseconds(200));
  if (!is_on()) request_stop(fmt::format("nobody: no {} was started", identity_.noun));
}

Task<> GuestKeeper::watch_logs() {
  while (!stopping_) {
    for (const std::string& log : logs()) {
      if (const auto trimmed = trim_log(log); !trimmed)
        log_warning("{}", trimmed.error().message());
    }
    Deadline next(loop_, log_interval, [this] { moved_.notify_all(); });
    co_await moved_.wait();
    co_await next.stop();
  }
}

void GuestKeeper::request_stop(const std::string& by) {
  if (std::exchange(stopping_, true)) return;
  log_info("asked to end by {}", by);
  moved_.notify_all();
}

void GuestKeeper::report(const char* event, std::string message) {
  log_info("{}{}{}", event, message.empty() ? "" : ": ", message);
  events_.tell(event, std::move(message));
}

Task<> GuestKeeper::say_goodbye() {
  stopping_ = true;
  is_open_ = false;
  server_.cancel_calls();
  co_await close_clients();
  co_await close_guest();
  signals_.close();
  co_await server_.close(last_answers_timeout);
  co_await tasks_.drained();
  ::unlink(identity_.control_socket.c_str());
}

Task<Result<Json>> GuestKeeper::hello() {
  Json answer = {{"version", BERTH_VERSION},
                 {"pid", ::getpid()},
                 {identity_.noun, identity_.name},
                 {"protocol", control_protocol_version},
                 {"open", is_open_ && !stopping_},
                 {"on", is_on()},
                 {"over", is_over_},
                 {"started_at", format_time(started_at_)},
                 {"events", events_.past()}};
  // Somebody has heard how it ended: there is nothing left to do.
  if (is_over_) request_stop(fmt::format("the {}'s end", identity_.noun));
  co_return answer;
}

/// QEMU runs on.
Task<Result<Json>> GuestKeeper::shutdown() {
  request_stop("a client");
  co_return Json::object();
}

namespace {

Result<void> run_on_a_loop(
    const std::string& noun, const std::string& name,
    const std::function<std::unique_ptr<GuestKeeper>(UringLoop&, Signals&)>& make) {
  TRY(check_name(noun, name));
  const auto loop = TRY(UringLoop::create());
  const std::array<int, 2> numbers = {SIGTERM, SIGINT};
  const auto signals = TRY(Signals::create(*loop, numbers));
  const auto keeper = make(*loop, *signals);
  return loop->run_until_complete(keeper->run());
}

}  // namespace

int run_guest_keeper(
    const std::string& noun, const std::string& name,
    const std::function<std::unique_ptr<GuestKeeper>(UringLoop&, Signals&)>& make) {
  std::signal(SIGPIPE, SIG_IGN);
  const auto outcome = run_on_a_loop(noun, name, make);
  if (!outcome) {
    // The daemon reads this line: see docs/formats/keeper-control.md.
    log_error("keeper {}: {}: cannot keep the {} '{}': {}", name, to_string(outcome.error().kind()),
              noun, name, outcome.error().message());
    return 1;
  }
  log_info("ended");
  return 0;
}

}  // namespace berth::machine
