// The process of the watchdog: waits, takes its turn or ends, and thaws. No loop and no threads: it
// has to work when little else does.

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <optional>
#include <utility>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/socket_address.h"
#include "base/log.h"
#include "machine/vm/agent_codec.h"
#include "machine/vm/freeze_watchdog.h"

namespace berth::machine {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds pause_between_attempts(200);
// An agent that has just started may not have heard what was said before.
constexpr milliseconds say_again_after(5000);

Instant now() { return steady_clock::now(); }

/// For poll(2), rounded up: never too early, and bounded.
int milliseconds_until(Instant deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - now());
  return static_cast<int>(
      std::clamp(left, milliseconds(0), milliseconds(std::chrono::hours(1))).count());
}

void ignore_signals() {
  sigset_t ignored;
  ::sigemptyset(&ignored);
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGPIPE}) {
    std::signal(number, SIG_IGN);
    ::sigaddset(&ignored, number);
  }
  ::sigprocmask(SIG_UNBLOCK, &ignored, nullptr);
}

enum class Why { keeper_gone, limit_over };

Why wait_for_end_of_keeper(int pipe, Duration limit) {
  const Instant deadline = now() + limit;
  while (now() < deadline) {
    // Not for its byte, which is there all the time: POLLHUP is always told.
    pollfd watched{.fd = pipe, .events = 0, .revents = 0};
    if (::poll(&watched, 1, milliseconds_until(deadline)) > 0) return Why::keeper_gone;
  }
  return Why::limit_over;
}

/// False if the keeper has it: the guest is thawed, by the keeper.
bool take_turn(int pipe) {
  char turn = 0;
  ssize_t taken = 0;
  do {
    taken = ::read(pipe, &turn, 1);
  } while (taken < 0 && errno == EINTR);
  return taken == 1;
}

class Connection {
 public:
  /// `disconnected` if nobody listens, `timed_out` if too many wait already.
  static Result<Connection> connect(const std::string& path) {
    const SocketAddress address = TRY(unix_address(path));
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return errno_failure(errno, "cannot create a socket");
    if (::connect(fd.get(), address.get(), address.length) == 0) return Connection(std::move(fd));
    const std::string context = fmt::format("cannot connect to '{}'", path);
    if (errno == ECONNREFUSED || errno == ENOENT)
      return failure(ErrorKind::disconnected, context + ": nobody listens");
    if (errno == EAGAIN) return failure(ErrorKind::timed_out, context + ": others wait");
    return errno_failure(errno, context);
  }

  Result<Json> ask(const char* command, Instant deadline) {
    AgentExchange exchange(make_agent_token(), command);
    Instant say_again = now() + say_again_after;
    std::string unsent;
    while (true) {
      unsent += exchange.take_output();
      if (exchange.answer()) return *exchange.answer();
      if (now() >= deadline)
        return failure(ErrorKind::timed_out, fmt::format("no answer to {}", command));
      const bool may_say_again = unsent.empty() && !exchange.has_asked();
      if (may_say_again && now() >= say_again) {
        exchange.begin_again(make_agent_token());
        say_again = now() + say_again_after;
        continue;
      }
      const auto events = static_cast<short>(unsent.empty() ? POLLIN : POLLIN | POLLOUT);
      pollfd watched{.fd = fd_.get(), .events = events, .revents = 0};
      ::poll(&watched, 1,
             milliseconds_until(may_say_again ? std::min(deadline, say_again) : deadline));
      if ((watched.revents & POLLOUT) != 0) TRY(send(unsent));
      if ((watched.revents & (POLLIN | POLLHUP | POLLERR)) != 0) TRY(receive(exchange));
    }
  }

 private:
  explicit Connection(Fd fd) : fd_(std::move(fd)) {}

  Result<void> send(std::string& unsent) {
    const ssize_t sent = ::send(fd_.get(), unsent.data(), unsent.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
      return errno_failure(errno, "cannot write to the agent's socket");
    if (sent > 0) unsent.erase(0, static_cast<std::size_t>(sent));
    return {};
  }

  Result<void> receive(AgentExchange& exchange) {
    std::array<std::byte, 16384> buffer;
    const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (got == 0) return failure(ErrorKind::disconnected, "QEMU has ended the connection");
    if (got < 0 && errno != EAGAIN && errno != EINTR)
      return errno_failure(errno, "cannot read from the agent's socket");
    if (got < 0) return {};
    return exchange.receive(Bytes(buffer).first(static_cast<std::size_t>(got)));
  }

  Fd fd_;
};

/// One thaw. True when the agent says that nothing is frozen.
Result<bool> thaw_once(Connection& connection, Instant deadline) {
  const auto thawed = connection.ask("guest-fsfreeze-thaw", deadline);
  if (!thawed && thawed.error().kind() != ErrorKind::precondition) return failure(thawed.error());
  const Json status = TRY(connection.ask("guest-fsfreeze-status", deadline));
  const bool is_frozen = TRY(parse_agent_is_frozen(status));
  if (is_frozen && !thawed) log_warning("watchdog: {}", thawed.error().message());
  return !is_frozen;
}

int thaw(const std::string& agent_socket) {
  const Instant deadline = now() + watchdog_thaw_max;
  std::optional<Connection> connection;
  std::string trouble;  // told once, not with every attempt
  while (now() < deadline) {
    Result<bool> is_done = false;
    if (!connection) {
      auto connected = Connection::connect(agent_socket);
      if (connected) {
        connection = std::move(*connected);
      } else if (connected.error().kind() == ErrorKind::disconnected) {
        log_info("watchdog: {}: there is nothing to thaw", connected.error().message());
        return 0;
      } else {
        is_done = failure(std::move(connected).error());
      }
    }
    if (connection) is_done = thaw_once(*connection, deadline);
    if (is_done && *is_done) {
      log_info("watchdog: the guest at '{}' is thawed", agent_socket);
      return 0;
    }
    if (!is_done) {
      connection.reset();
      if (trouble != is_done.error().message())
        log_warning("watchdog: {}", trouble = is_done.error().message());
    }
    ::poll(nullptr, 0, static_cast<int>(pause_between_attempts.count()));
  }
  log_error("watchdog: the guest at '{}' could not be thawed in time", agent_socket);
  return 1;
}

}  // namespace

int run_freeze_watchdog(const std::string& agent_socket, int fd, Duration limit) {
  ignore_signals();
  Fd pipe(fd);
  const Why why = wait_for_end_of_keeper(pipe.get(), limit);
  if (!take_turn(pipe.get())) return 0;
  pipe.reset();
  log_warning("watchdog: thawing the guest at '{}': {}", agent_socket,
              why == Why::limit_over
                  ? fmt::format("it was frozen for {} ms", limit / milliseconds(1))
                  : std::string("its keeper is gone"));
  // The keeper waits for the end of this process, and not until the guest is thawed. Where there
  // can be no other process, it has to do it all the same.
  if (::fork() > 0) return 0;
  return thaw(agent_socket);
}

}  // namespace berth::machine
