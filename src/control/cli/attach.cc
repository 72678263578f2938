#include "control/cli/attach.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/socket_address.h"
#include "base/fd.h"
#include "container/attach_frame.h"
#include "control/actions.h"
#include "control/cli/terminal.h"
#include "machine/control_protocol.h"

namespace berth::control::cli {
namespace {

using container::AttachFrameType;
using Json = nlohmann::json;

constexpr std::size_t waiting_max = 256 * 1024;  // bytes for the container that it has not taken
constexpr char detach_first = 0x10;              // ^P
constexpr char detach_second = 0x11;             // ^Q

std::optional<winsize> terminal_size() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0) return std::nullopt;
  return size;
}

Result<Fd> connect(const AttachPoint& at) {
  auto connected = connect_unix(at.socket);
  if (connected || connected.error().kind() != ErrorKind::permission) return connected;
  return at.daemon.upgrade(*find_action("container.attach"), {{"container", at.container}});
}

/// Signals as something to poll: those that end a process, and that its terminal has another size.
class Signals {
 public:
  Signals() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH}) {
      struct sigaction action{};
      ::sigaction(number, nullptr, &action);
      // Who started us may have it ignored (nohup): it stays so.
      if (action.sa_handler != SIG_IGN) sigaddset(&signals, number);
    }
    ::sigprocmask(SIG_BLOCK, &signals, &before_);
    fd_ = Fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    std::signal(SIGPIPE, SIG_IGN);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;
  ~Signals() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  int fd() const { return fd_.get(); }
  std::optional<int> next() const {
    signalfd_siginfo information{};
    if (::read(fd_.get(), &information, sizeof information) != sizeof information)
      return std::nullopt;
    return static_cast<int>(information.ssi_signo);
  }

 private:
  sigset_t before_{};
  Fd fd_;
};

class Attached {
 public:
  Attached(Fd socket, const AttachOptions& options, Terminal& terminal, Signals& signals)
      : socket_(std::move(socket)), options_(options), terminal_(terminal), signals_(signals) {}

  /// What the keeper answers to the request.
  Result<Json> ask(const Json& request) {
    const std::string line = machine::format_json(request) + '\n';
    if (::send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(line.size()))
      return errno_failure(errno, "cannot speak to the container's keeper");
    std::string answer;
    std::array<char, 4096> buffer;
    while (!answer.contains('\n')) {
      const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0 || answer.size() > container::attach_line_max)
        return failure(ErrorKind::disconnected, "the container's keeper has hung up");
      answer.append(buffer.data(), static_cast<std::size_t>(got));
    }
    const std::size_t end = answer.find('\n');
    decoder_.append(as_bytes(std::string_view(answer).substr(end + 1)));
    return machine::parse_json(std::string_view(answer).substr(0, end));
  }

  int run() {
    if (options_.terminal) terminal_.make_raw();
    if (!options_.fixed_input.empty()) {
      queue(container::attach_frame(AttachFrameType::input, as_bytes(options_.fixed_input)));
      queue(container::attach_frame(AttachFrameType::input, {}));
    }
    while (!end_) {
      if (!take_frames() || end_) break;
      std::array<pollfd, 3> watched{{
          {.fd = signals_.fd(), .events = POLLIN, .revents = 0},
          {.fd = reads_input() ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0},
          {.fd = socket_.get(),
           .events = static_cast<short>(to_keeper_.empty() ? POLLIN : POLLIN | POLLOUT),
           .revents = 0},
      }};
      if (::poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) break;
      if (watched[0].revents != 0) take_signal();
      if (watched[1].revents != 0) read_input();
      if ((watched[2].revents & POLLOUT) != 0) send();
      if ((watched[2].revents & (POLLIN | POLLHUP | POLLERR)) != 0 && !receive()) break;
    }
    terminal_.restore();
    if (end_) return *end_;
    fmt::print(stderr, "berth: the connection to the container is gone\n");
    return exit_engine_failed;
  }

 private:
  bool reads_input() const {
    return options_.input && !input_has_ended_ && to_keeper_.size() < waiting_max;
  }

  void queue(const std::vector<std::byte>& frame) {
    to_keeper_.append(reinterpret_cast<const char*>(frame.data()), frame.size());
  }

  void take_signal() {
    const auto number = signals_.next();
    if (!number) return;
    if (*number == SIGWINCH) {
      if (const auto size = terminal_size(); size && options_.terminal)
        queue(container::attach_size_frame(size->ws_row, size->ws_col));
      return;
    }
    const std::array<std::byte, 1> payload = {static_cast<std::byte>(*number)};
    queue(container::attach_frame(AttachFrameType::signal, payload));
  }

  void read_input() {
    std::array<char, 16384> buffer;
    const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (got <= 0) {
      input_has_ended_ = true;
      queue(container::attach_frame(AttachFrameType::input, {}));
      return;
    }
    std::string_view input(buffer.data(), static_cast<std::size_t>(got));
    if (options_.terminal && detaches(input)) {
      end_ = 0;
      return;
    }
    queue(container::attach_frame(AttachFrameType::input, as_bytes(input)));
  }

  bool detaches(std::string_view keys) {
    for (const char key : keys) {
      if (had_detach_first_ && key == detach_second) return true;
      had_detach_first_ = key == detach_first;
    }
    return false;
  }

  void send() {
    const ssize_t sent =
        ::send(socket_.get(), to_keeper_.data(), to_keeper_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) to_keeper_.erase(0, static_cast<std::size_t>(sent));
    // Of an error, receiving tells.
    if (sent < 0 && errno != EAGAIN && errno != EINTR) to_keeper_.clear();
  }

  bool receive() {
    std::array<std::byte, 65536> buffer;
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) return false;
    decoder_.append(Bytes(buffer).first(static_cast<std::size_t>(got)));
    return true;
  }

  static bool write_all(int fd, Bytes bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd, bytes.data(), bytes.size());
      if (written < 0 && errno == EAGAIN) {
        pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
        (void)::poll(&ready, 1, -1);
        continue;
      }
      if (written < 0 && errno != EINTR) return false;
      if (written > 0) bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    return true;
  }

  /// False: there is nobody to tell, or no sense in it.
  bool take_frames() {
    while (!end_) {
      auto frame = decoder_.next();
      if (!frame) return false;
      if (!*frame) return true;
      const Bytes payload = (*frame)->payload;
      switch ((*frame)->type) {
        case AttachFrameType::output:
          if (!write_all(STDOUT_FILENO, payload)) return false;
          break;
        case AttachFrameType::errors:
          if (!write_all(STDERR_FILENO, payload)) return false;
          break;
        case AttachFrameType::exit:
          end_ = payload.empty() ? exit_engine_failed : std::to_integer<int>(payload[0]);
          break;
        case AttachFrameType::failed:
          terminal_.restore();
          if (!options_.quiet) fmt::print(stderr, "berth: {}\n", as_text(payload));
          end_ = exit_engine_failed;
          break;
        default: break;
      }
    }
    return true;
  }

  Fd socket_;
  const AttachOptions options_;
  Terminal& terminal_;
  Signals& signals_;
  container::AttachDecoder decoder_;
  std::string to_keeper_;
  bool input_has_ended_ = false;
  bool had_detach_first_ = false;
  std::optional<int> end_;
};

}  // namespace

void add_terminal_size(Json& request) {
  if (const auto size = terminal_size()) {
    request["rows"] = size->ws_row;
    request["columns"] = size->ws_col;
  }
}

Result<AttachPoint> attach_point(const ApiClient& daemon, const Json& container) {
  const std::string name = container.value("name", "");
  if (!container["attach"].is_string())
    return failure(ErrorKind::precondition, fmt::format("the container '{}' does not run", name));
  return AttachPoint{
      .daemon = daemon, .container = name, .socket = container["attach"].get<std::string>()};
}

int run_attached(const AttachPoint& at, const Json& request, const AttachOptions& options) {
  auto socket = connect(at);
  if (!socket) {
    fmt::print(stderr, "berth: {}\n", socket.error().message());
    return exit_engine_failed;
  }
  Signals signals;  // first: from here on none ends us while the terminal is raw
  Terminal terminal(STDIN_FILENO);
  Attached attached(std::move(*socket), options, terminal, signals);
  const auto answer = attached.ask(request);
  if (!answer) {
    fmt::print(stderr, "berth: {}\n", answer.error().message());
    return exit_engine_failed;
  }
  if (const auto error = answer->find("error"); error != answer->end() && error->is_object()) {
    fmt::print(stderr, "berth: {}\n", error->value("message", std::string()));
    return error->value("shell_status", exit_engine_failed);
  }
  return attached.run();
}

}  // namespace berth::control::cli
