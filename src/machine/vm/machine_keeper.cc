#include "machine/vm/machine_keeper.h"

#include <array>
#include <csignal>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/directories.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/signals.h"
#include "async/socket.h"
#include "async/uring_loop.h"
#include "base/log.h"
#include "base/units.h"
#include "machine/control_server.h"
#include "machine/keeper_events.h"
#include "machine/vm/log_file.h"
#include "machine/vm/machine.h"
#include "machine/vm/machine_methods.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr Duration last_answers_timeout = std::chrono::seconds(2);
constexpr Duration log_interval = std::chrono::seconds(5);
constexpr Duration first_start_patience =
    std::chrono::seconds(60);  // of a keeper nobody asks for anything
constexpr std::size_t remembered_events_max = 32;

class MachineKeeper {
 public:
  MachineKeeper(UringLoop& loop, Signals& signals, const MachineKeeperOptions& options)
      : loop_(loop),
        signals_(signals),
        options_(options),
        run_{options.run_dir},
        started_at_(loop.wall_time()),
        tasks_(loop),
        moved_(loop),
        server_(loop),
        machine_(
            loop,
            {.name = options.machine,
             .state = {options.state_dir},
             .run = run_,
             .memory_dir = options.memory_dir,
             .preload = options.preload},
            [this](const char* event, std::string message) { report(event, std::move(message)); }),
        quiescence_(loop, machine_, options.program),
        save_(loop, machine_),
        methods_(loop, server_, machine_, quiescence_, save_) {
    server_.add("hello", [this](ControlCall& /*call*/) { return hello(); });
    server_.add("shutdown", [this](ControlCall& /*call*/) { return shutdown(); });
  }

  Task<Result<void>> run() {
    outcome_ = take_name();
    if (outcome_) outcome_ = serve_control();
    if (!outcome_) {
      co_await machine_.close();
      co_return outcome_;
    }
    tasks_.spawn(watch_signals());
    tasks_.spawn(watch_patience());
    tasks_.spawn(watch_logs());
    const auto adopted = co_await machine_.adopt();
    if (!adopted) outcome_ = failure(adopted.error());
    if (outcome_) {
      is_over_ = *adopted && !machine_.is_on();
      methods_.open();
      is_open_ = true;
      tasks_.spawn(quiescence_.recover());
      tasks_.spawn(watch_machine());
      while (!stopping_) co_await moved_.wait();
    }
    co_await say_goodbye();
    co_return outcome_;
  }

 private:
  Result<void> take_name() {
    TRY(make_directories(run_.machine(options_.machine)));
    lock_ =
        TRY(take_lock_file(run_.machine_lock_file(options_.machine),
                           fmt::format("another keeper has the machine '{}'", options_.machine)));
    return {};
  }

  Result<void> serve_control() {
    const std::string path = run_.machine_control_socket(options_.machine);
    ::unlink(path.c_str());  // the name is ours: a socket that is there is a dead keeper's
    server_.serve(TRY(SocketListener::listen_unix(loop_, path)));
    return {};
  }

  Task<> watch_signals() {
    while (true) {
      const auto number = co_await signals_.next();
      if (!number) co_return;
      request_stop(*number == SIGTERM ? "SIGTERM" : "SIGINT");
    }
  }

  /// A machine that has ended needs no keeper.
  Task<> watch_machine() {
    while (!stopping_ && !machine_.is_on()) co_await machine_.changed();
    while (!stopping_ && machine_.is_on()) co_await machine_.changed();
    request_stop("the machine's end");
  }

  Task<> watch_patience() {
    const Instant deadline = loop_.now() + first_start_patience;
    while (!stopping_ && !machine_.is_on() && loop_.now() < deadline)
      co_await loop_.sleep(std::chrono::milliseconds(200));
    if (!machine_.is_on()) request_stop("nobody: no machine was started");
  }

  Task<> watch_logs() {
    while (!stopping_) {
      for (const std::string& path : machine_.logs()) {
        if (const auto trimmed = trim_log(path); !trimmed)
          log_warning("{}", trimmed.error().message());
      }
      Deadline next(loop_, log_interval, [this] { moved_.notify_all(); });
      co_await moved_.wait();
      co_await next.stop();
    }
  }

  void request_stop(const char* by) {
    if (std::exchange(stopping_, true)) return;
    log_info("asked to end by {}", by);
    moved_.notify_all();
  }

  void report(const char* event, std::string message) {
    log_info("{}{}{}", event, message.empty() ? "" : ": ", message);
    events_.tell(event, std::move(message));
  }

  Task<> say_goodbye() {
    stopping_ = true;
    is_open_ = false;
    server_.cancel_calls();
    co_await methods_.close();
    co_await machine_.close();
    signals_.close();
    co_await server_.close(last_answers_timeout);
    co_await tasks_.drained();
    ::unlink(run_.machine_control_socket(options_.machine).c_str());
  }

  Task<Result<Json>> hello() {
    Json answer = {{"version", BERTH_VERSION},
                   {"pid", ::getpid()},
                   {"machine", options_.machine},
                   {"protocol", control_protocol_version},
                   {"open", is_open_ && !stopping_},
                   {"on", machine_.is_on()},
                   {"over", is_over_},
                   {"started_at", format_time(started_at_)},
                   {"events", events_.past()}};
    // Somebody has heard how it ended: there is nothing left to do.
    if (is_over_) request_stop("the machine's end");
    co_return answer;
  }

  /// QEMU runs on.
  Task<Result<Json>> shutdown() {
    request_stop("a client");
    co_return Json::object();
  }

  UringLoop& loop_;
  Signals& signals_;
  const MachineKeeperOptions& options_;
  const RunLayout run_;
  const std::chrono::system_clock::time_point started_at_;
  Fd lock_;
  Gate tasks_;
  Event moved_;
  bool stopping_ = false;
  bool is_open_ = false;
  bool is_over_ = false;  // what it was to go on with had ended
  Result<void> outcome_;
  ControlServer server_;
  KeeperEvents events_{server_, loop_, remembered_events_max};
  Machine machine_;
  Quiescence quiescence_;
  MemorySave save_;
  MachineMethods methods_;
};

Result<void> run(const MachineKeeperOptions& options) {
  TRY(check_name("machine", options.machine));
  const auto loop = TRY(UringLoop::create());
  const std::array<int, 2> numbers = {SIGTERM, SIGINT};
  const auto signals = TRY(Signals::create(*loop, numbers));
  MachineKeeper keeper(*loop, *signals, options);
  return loop->run_until_complete(keeper.run());
}

}  // namespace

int run_machine_keeper(const MachineKeeperOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  const auto outcome = run(options);
  if (!outcome) {
    log_error("keeper {}: {}: cannot keep the machine '{}': {}", options.machine,
              to_string(outcome.error().kind()), options.machine, outcome.error().message());
    return 1;
  }
  log_info("ended");
  return 0;
}

}  // namespace berth::machine
