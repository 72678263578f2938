#include "container/container_keeper.h"

#include <array>
#include <csignal>
#include <memory>
#include <utility>

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
#include "container/attach_server.h"
#include "container/container.h"
#include "container/container_methods.h"
#include "machine/control_server.h"
#include "machine/keeper_events.h"
#include "machine/layout.h"
#include "machine/vm/log_file.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

using machine::ControlCall;
using machine::Json;

constexpr Duration last_answers_timeout = std::chrono::seconds(2);
constexpr Duration last_readers_timeout = std::chrono::seconds(10);
constexpr Duration log_interval = std::chrono::seconds(5);
constexpr Duration first_start_patience =
    std::chrono::seconds(60);  // of a keeper nobody asks for anything
constexpr std::size_t remembered_events_max = 32;

class ContainerKeeper {
 public:
  ContainerKeeper(UringLoop& loop, Signals& signals, const ContainerKeeperOptions& options)
      : loop_(loop),
        signals_(signals),
        name_(options.container),
        run_{options.run_dir},
        started_at_(loop.wall_time()),
        tasks_(loop),
        moved_(loop),
        server_(loop),
        container_(
            loop,
            {.name = options.container,
             .state_dir = options.state_dir,
             .run = run_,
             .memory_dir = options.memory_dir,
             .preload = options.preload},
            [this](const char* event, std::string message) { report(event, std::move(message)); }),
        attach_(loop, container_),
        methods_(server_, container_) {
    server_.add("hello", [this](ControlCall& /*call*/) { return hello(); });
    server_.add("shutdown", [this](ControlCall& /*call*/) { return shutdown(); });
  }

  Task<Result<void>> run() {
    outcome_ = take_name();
    if (outcome_) outcome_ = serve();
    if (!outcome_) {
      co_await attach_.close();
      co_await container_.close();
      co_return outcome_;
    }
    tasks_.spawn(watch_signals());
    tasks_.spawn(watch_patience());
    tasks_.spawn(watch_logs());
    const auto adopted = co_await container_.adopt();
    if (!adopted) outcome_ = failure(adopted.error());
    if (outcome_) {
      is_over_ = *adopted && !container_.is_on();
      methods_.open();
      is_open_ = true;
      tasks_.spawn(watch_container());
      while (!stopping_) co_await moved_.wait();
    }
    co_await say_goodbye();
    co_return outcome_;
  }

 private:
  Result<void> take_name() {
    TRY(make_directories(run_.container(name_)));
    lock_ = TRY(machine::take_lock_file(
        run_.lock_file(name_), fmt::format("another keeper has the container '{}'", name_)));
    return {};
  }

  Result<void> serve() {
    // The names are ours: a socket that is there is a dead keeper's.
    for (const std::string& path : {run_.control_socket(name_), run_.attach_socket(name_)}) {
      TRY(machine::check_socket_path(path));
      ::unlink(path.c_str());
    }
    attach_.serve(TRY(SocketListener::listen_unix(loop_, run_.attach_socket(name_))));
    server_.serve(TRY(SocketListener::listen_unix(loop_, run_.control_socket(name_))));
    return {};
  }

  Task<> watch_signals() {
    while (true) {
      const auto number = co_await signals_.next();
      if (!number) co_return;
      request_stop(*number == SIGTERM ? "SIGTERM" : "SIGINT");
    }
  }

  /// A container that has ended needs no keeper, once everybody has heard of it.
  Task<> watch_container() {
    while (!stopping_ && !container_.is_on()) co_await container_.changed();
    while (!stopping_ && container_.is_on()) co_await container_.changed();
    if (!stopping_) co_await attach_.drained(last_readers_timeout);
    request_stop("the container's end");
  }

  Task<> watch_patience() {
    const Instant deadline = loop_.now() + first_start_patience;
    while (!stopping_ && !container_.is_on() && loop_.now() < deadline)
      co_await loop_.sleep(std::chrono::milliseconds(200));
    if (!container_.is_on()) request_stop("nobody: no container was started");
  }

  Task<> watch_logs() {
    while (!stopping_) {
      if (container_.is_on()) {
        for (const std::string& path : container_.logs()) {
          if (const auto trimmed = machine::trim_log(path); !trimmed)
            log_warning("{}", trimmed.error().message());
        }
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
    methods_.close();
    server_.cancel_calls();
    co_await attach_.close();
    co_await container_.close();
    signals_.close();
    co_await server_.close(last_answers_timeout);
    co_await tasks_.drained();
    for (const std::string& path : {run_.control_socket(name_), run_.attach_socket(name_)})
      ::unlink(path.c_str());
  }

  Task<Result<Json>> hello() {
    Json answer = {{"version", BERTH_VERSION},
                   {"pid", ::getpid()},
                   {"container", name_},
                   {"protocol", machine::control_protocol_version},
                   {"open", is_open_ && !stopping_},
                   {"on", container_.is_on()},
                   {"over", is_over_},
                   {"started_at", format_time(started_at_)},
                   {"events", events_.past()}};
    // Somebody has heard how it ended: there is nothing left to do.
    if (is_over_) request_stop("the container's end");
    co_return answer;
  }

  /// QEMU runs on.
  Task<Result<Json>> shutdown() {
    request_stop("a client");
    co_return Json::object();
  }

  UringLoop& loop_;
  Signals& signals_;
  const std::string name_;
  const ContainerRunLayout run_;
  const std::chrono::system_clock::time_point started_at_;
  Fd lock_;
  Gate tasks_;
  Event moved_;
  bool stopping_ = false;
  bool is_open_ = false;
  bool is_over_ = false;  // what it was to go on with had ended
  Result<void> outcome_;
  machine::ControlServer server_;
  machine::KeeperEvents events_{server_, loop_, remembered_events_max};
  Container container_;
  AttachServer attach_;
  ContainerMethods methods_;
};

Result<void> run(const ContainerKeeperOptions& options) {
  TRY(machine::check_name("container", options.container));
  const auto loop = TRY(UringLoop::create());
  const std::array<int, 2> numbers = {SIGTERM, SIGINT};
  const auto signals = TRY(Signals::create(*loop, numbers));
  ContainerKeeper keeper(*loop, *signals, options);
  return loop->run_until_complete(keeper.run());
}

}  // namespace

int run_container_keeper(const ContainerKeeperOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  const auto outcome = run(options);
  if (!outcome) {
    log_error("keeper {}: {}: cannot keep the container '{}': {}", options.container,
              to_string(outcome.error().kind()), options.container, outcome.error().message());
    return 1;
  }
  log_info("ended");
  return 0;
}

}  // namespace berth::container
