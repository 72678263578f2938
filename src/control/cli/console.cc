#include "control/cli/console.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <optional>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/socket_address.h"
#include "base/fd.h"
#include "base/result.h"
#include "control/cli/terminal.h"
#include "control/exit_code.h"

namespace berth::control::cli {
namespace {

constexpr std::size_t buffer_max = 64 * 1024;  // bytes under way in one direction
constexpr std::size_t blocking_write_max =
    512;  // bytes: poll() promises room for so many in a pipe
constexpr std::chrono::seconds connect_time_max{5};

Result<Fd> connect(const std::string& path) {
  const std::string context = fmt::format("cannot connect to the console at '{}'", path);
  const SocketAddress address = TRY(unix_address(path));
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_failure(errno, "cannot create a socket");
  const timeval limit{.tv_sec = connect_time_max.count(), .tv_usec = 0};
  static_cast<void>(::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
  if (::connect(fd.get(), address.get(), address.length) == 0) return fd;
  if (errno == EAGAIN)
    return failure(ErrorKind::in_use, context + ": others are connected, and more wait already");
  if (errno == ECONNREFUSED)
    return failure(ErrorKind::not_found, context + ": the machine is not running");
  return errno_failure(errno, context);
}

/// Signals that end, stop or continue the process, as something to poll. SIGPIPE is an error of
/// write().
class Signals {
 public:
  Signals() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGCONT}) {
      struct sigaction action{};
      ::sigaction(number, nullptr, &action);
      // Who started us may have it ignored (nohup): it stays so.
      if (action.sa_handler != SIG_IGN) sigaddset(&signals, number);
    }
    ::sigprocmask(SIG_BLOCK, &signals, &before_);
    fd_ = Fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    pipe_before_ = std::signal(SIGPIPE, SIG_IGN);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;
  ~Signals() {
    while (next()) {
    }
    std::signal(SIGPIPE, pipe_before_);
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }

  int fd() const { return fd_.get(); }
  std::optional<int> next() {
    signalfd_siginfo information{};
    if (::read(fd_.get(), &information, sizeof information) != sizeof information)
      return std::nullopt;
    return static_cast<int>(information.ssi_signo);
  }

 private:
  sigset_t before_{};
  void (*pipe_before_)(int) = SIG_DFL;
  Fd fd_;
};

/// Standard output, not blocking where it is a terminal or a pipe, and without changing it for
/// others who have it open too.
class Output {
 public:
  Output() {
    struct stat status{};
    const bool may_block = ::fstat(STDOUT_FILENO, &status) == 0 &&
                           (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode));
    if (may_block)
      own_ = Fd(::open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  }
  int fd() const { return own_ ? own_.get() : STDOUT_FILENO; }
  ssize_t write(std::string_view bytes) const {
    return ::write(fd(), bytes.data(),
                   own_ ? bytes.size() : std::min(bytes.size(), blocking_write_max));
  }

 private:
  Fd own_;
};

enum class End : std::uint8_t { escape, input_gone, console_gone, output_gone, silence, signal };

class Relay {
 public:
  Relay(Fd console, Terminal& terminal, Signals& signals, std::chrono::milliseconds silence)
      : console_(std::move(console)), terminal_(terminal), signals_(signals), silence_(silence) {}

  End run() {
    while (true) {
      std::array<pollfd, 4> watched{{
          {.fd = signals_.fd(), .events = POLLIN, .revents = 0},
          {.fd = may_read_input() ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0},
          {.fd = console_events() == 0 ? -1 : console_.get(),
           .events = console_events(),
           .revents = 0},
          {.fd = to_output_.empty() ? -1 : output_.fd(), .events = POLLOUT, .revents = 0},
      }};
      const int count = ::poll(watched.data(), watched.size(), patience_ms());
      if (count == 0) return End::silence;
      std::optional<End> end;
      if (watched[0].revents != 0) end = take_signal();
      if (!end && watched[3].revents != 0) end = write_output();
      if (!end && watched[2].revents != 0) exchange_with_console(watched[2].revents);
      if (!end && watched[1].revents != 0) end = read_input();
      if (end) return *end;
      if (console_has_ended_ && to_output_.empty()) return End::console_gone;
    }
  }

 private:
  bool may_read_input() const {
    // A terminal is always read: its ^] has to be seen. What a guest does not take is dropped then.
    return !input_has_ended_ && (terminal_.is_one() || to_console_.size() < buffer_max);
  }
  short console_events() const {
    if (console_has_ended_) return 0;
    const int reads = to_output_.size() < buffer_max ? POLLIN : 0;
    return static_cast<short>(to_console_.empty() ? reads : reads | POLLOUT);
  }
  /// After a script's last input, until the guest has been silent for a while.
  int patience_ms() const {
    const bool ends = input_has_ended_ && had_input_ && to_console_.empty() && to_output_.empty();
    return ends ? static_cast<int>(silence_.count()) : -1;
  }

  std::optional<End> take_signal() {
    const auto number = signals_.next();
    if (!number) return std::nullopt;
    if (*number == SIGCONT) {
      terminal_.make_raw();  // whoever had it meanwhile has changed it
      return std::nullopt;
    }
    if (*number != SIGTSTP) return End::signal;
    terminal_.restore();
    ::raise(SIGSTOP);
    return std::nullopt;
  }

  std::optional<End> read_input() {
    std::array<char, 4096> buffer;
    const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return std::nullopt;
    if (got <= 0) {
      if (terminal_.is_one()) return End::input_gone;
      input_has_ended_ = true;
      return std::nullopt;
    }
    had_input_ = true;
    std::string_view input(buffer.data(), static_cast<std::size_t>(got));
    const std::size_t escape =
        terminal_.is_one() ? input.find(console_escape) : std::string_view::npos;
    input = input.substr(0, escape);
    to_console_ += input.substr(0, buffer_max - std::min(buffer_max, to_console_.size()));
    if (escape == std::string_view::npos) return std::nullopt;
    send_to_console();
    return End::escape;
  }

  void exchange_with_console(short events) {
    if ((events & POLLOUT) != 0) send_to_console();
    if ((events & (POLLIN | POLLHUP | POLLERR)) == 0 || to_output_.size() >= buffer_max) return;
    std::array<char, 16384> buffer;
    const ssize_t got = ::recv(console_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got > 0) {
      to_output_.append(buffer.data(), static_cast<std::size_t>(got));
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      console_has_ended_ = true;
      to_console_.clear();
    }
  }

  void send_to_console() {
    const ssize_t sent =
        ::send(console_.get(), to_console_.data(), to_console_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    // Of an error, receiving tells.
    if (sent > 0) to_console_.erase(0, static_cast<std::size_t>(sent));
    if (sent < 0 && errno != EAGAIN && errno != EINTR) to_console_.clear();
  }

  std::optional<End> write_output() {
    const ssize_t written = output_.write(to_output_);
    if (written > 0) to_output_.erase(0, static_cast<std::size_t>(written));
    if (written < 0 && errno != EAGAIN && errno != EINTR) return End::output_gone;
    return std::nullopt;
  }

  Fd console_;
  Terminal& terminal_;
  Signals& signals_;
  std::chrono::milliseconds silence_;
  Output output_;
  std::string to_console_;
  std::string to_output_;
  bool had_input_ = false;
  bool input_has_ended_ = false;
  bool console_has_ended_ = false;
};

End relay(Fd console, std::chrono::milliseconds silence) {
  Signals signals;  // first: from here on none ends us while the terminal is raw
  Terminal terminal(STDIN_FILENO);
  if (terminal.is_one()) fmt::print(stderr, "Connected to the console; ^] ends this.\n");
  terminal.make_raw();
  return Relay(std::move(console), terminal, signals, silence).run();
}

}  // namespace

int run_console(const std::string& socket_path, std::chrono::milliseconds silence) {
  auto console = connect(socket_path);
  if (!console) {
    fmt::print(stderr, "berth: {}\n", console.error().message());
    return exit_code(console.error().kind());
  }
  const bool is_terminal = ::isatty(STDIN_FILENO) == 1;
  const End end = relay(std::move(*console), silence);
  if (is_terminal && end == End::escape) fmt::print(stderr, "\n");
  if (is_terminal && end == End::console_gone)
    fmt::print(stderr, "\nThe machine has ended its console.\n");
  return end == End::signal ? exit_cancelled : exit_done;
}

}  // namespace berth::control::cli
