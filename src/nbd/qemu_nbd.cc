#include "nbd/qemu_nbd.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/socket.h"
#include "nbd/protocol.h"

namespace berth::nbd {
namespace {

constexpr std::size_t output_shown_max = 2048;  // bytes of what the child said
constexpr int first_free_fd = 10;               // above what the child gets
constexpr int passed_socket_fd = 3;             // sd_listen_fds(3)
constexpr std::size_t greeting_size = 18;       // NBD: Newstyle negotiation

std::string percent_encoded(std::string_view text) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~/").find(c) != std::string_view::npos;
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

Result<Fd> listening_socket(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof address.sun_path) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is too long for a unix socket", path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  ::unlink(path.c_str());
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_failure(errno, "cannot create a socket");
  static_cast<void>(::fchmod(fd.get(), 0600));  // the mode of the file that bind() makes
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    return errno_failure(errno, fmt::format("cannot listen on '{}'", path));
  }
  return fd;
}

/// A second descriptor for the same, out of the way of those that the child gets.
Result<Fd> moved_up(const Fd& fd) {
  Fd moved(::fcntl(fd.get(), F_DUPFD_CLOEXEC, first_free_fd));
  if (!moved) return errno_failure(errno, "cannot duplicate a descriptor");
  return moved;
}

/// What the child needs, prepared before the fork: after it, only system calls are safe.
struct Launch {
  const char* program;
  std::vector<char*> arguments;
  std::vector<char*> environment;
  char* own_pid;  // ten digits of the environment, to be filled in
  int socket;
  int output;
  pid_t parent;
};

[[noreturn]] void become(const Launch& launch) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != launch.parent) ::_exit(127);  // it has died before that
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || ::dup2(null, 0) < 0 || ::dup2(launch.output, 1) < 0 ||
      ::dup2(launch.output, 2) < 0 || ::dup2(launch.socket, passed_socket_fd) < 0) {
    ::_exit(127);
  }
  ::syscall(SYS_close_range, passed_socket_fd + 1, ~0U, 0U);
  auto rest = static_cast<unsigned>(::getpid());
  for (char* digit = launch.own_pid + 9; digit >= launch.own_pid; --digit, rest /= 10) {
    *digit = static_cast<char>('0' + rest % 10);
  }
  ::execve(launch.program, launch.arguments.data(), launch.environment.data());
  const std::string_view message = ::strerrorname_np(errno);
  static_cast<void>(!::write(2, message.data(), message.size()));
  ::_exit(127);
}

}  // namespace

QemuNbd::QemuNbd(Options options)
    : options_(std::move(options)),
      uri_("nbd+unix:///?socket=" + percent_encoded(options_.socket_path)) {}

QemuNbd::~QemuNbd() {
  if (!process_) return;
  ::syscall(SYS_pidfd_send_signal, process_.get(), SIGKILL, nullptr, 0);
  siginfo_t ended{};
  while (::waitid(P_PIDFD, static_cast<id_t>(process_.get()), &ended, WEXITED) != 0 &&
         errno == EINTR) {
  }
  ::unlink(options_.socket_path.c_str());
}

Task<Result<std::unique_ptr<QemuNbd>>> QemuNbd::start(UringLoop& loop, Options options) {
  if (!options.image.starts_with('/') || !options.socket_path.starts_with('/')) {
    co_return failure(ErrorKind::invalid_argument,
                      "an image and a socket for qemu-nbd have absolute paths");
  }
  if (::access(options.program.c_str(), X_OK) != 0) {
    co_return errno_failure(
        errno,
        fmt::format("'{}' cannot be run; it is in Debian's package qemu-utils", options.program));
  }
  std::unique_ptr<QemuNbd> child(new QemuNbd(std::move(options)));
  CO_TRY(child->spawn());
  const Result<void> serves = co_await child->wait_until_it_serves(loop);
  if (!serves) {
    const std::string said = child->output();
    Error error = serves.error();
    // Its own words say more than that a connection broke.
    if (!said.empty()) error = Error(ErrorKind::io_error, said);
    co_return failure(std::move(error).with_context(fmt::format(
        "qemu-nbd cannot serve '{}' as {}", child->options_.image, child->options_.format)));
  }
  co_return child;
}

Result<void> QemuNbd::spawn() {
  const Fd listening = TRY(listening_socket(options_.socket_path));
  output_ = Fd(::memfd_create("qemu-nbd-output", MFD_CLOEXEC));
  if (!output_) return errno_failure(errno, "cannot create a memory file");
  const Fd socket = TRY(moved_up(listening));
  const Fd output = TRY(moved_up(output_));

  std::vector<std::string> arguments{
      "qemu-nbd", "--read-only", "--persistent", "--shared=0", "--format=" + options_.format,
      "--",       options_.image};
  // The socket is passed as systemd would: it takes connections before qemu-nbd does, and none is
  // refused.
  std::string own_pid = "LISTEN_PID=0000000000";
  std::string count = "LISTEN_FDS=1";
  Launch launch{.program = options_.program.c_str(),
                .arguments = {},
                .environment = {own_pid.data(), count.data()},
                .own_pid = own_pid.data() + std::strlen("LISTEN_PID="),
                .socket = socket.get(),
                .output = output.get(),
                .parent = ::getpid()};
  for (std::string& argument : arguments) launch.arguments.push_back(argument.data());
  launch.arguments.push_back(nullptr);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with("LISTEN_"))
      launch.environment.push_back(*variable);
  }
  launch.environment.push_back(nullptr);

  pid_ = ::fork();
  if (pid_ < 0) return errno_failure(errno, "cannot start qemu-nbd");
  if (pid_ == 0) become(launch);
  // Nobody else waits for it, so that its number is still its own.
  process_ = Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  if (!process_) {
    const int why = errno;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    return errno_failure(why, "cannot watch qemu-nbd");
  }
  return {};
}

/// It has opened the image when it greets. Where it ends instead, its socket closes, and with it
/// our connection.
Task<Result<void>> QemuNbd::wait_until_it_serves(UringLoop& loop) {
  const auto stream =
      CO_TRY(co_await connect_unix(loop, options_.socket_path, options_.start_timeout));
  Deadline deadline(loop, options_.start_timeout, [&stream] { stream->shutdown(); });
  std::array<std::byte, greeting_size> greeting;
  Result<void> outcome = co_await stream->read_exactly(greeting);
  co_await deadline.stop();
  if (deadline.expired()) {
    co_return failure(ErrorKind::timed_out,
                      fmt::format("no greeting within {} ms",
                                  options_.start_timeout / std::chrono::milliseconds(1)));
  }
  co_return outcome;
}

std::string QemuNbd::output() const {
  std::string text(output_shown_max, '\0');
  const ssize_t length = ::pread(output_.get(), text.data(), text.size(), 0);
  text.resize(length > 0 ? static_cast<std::size_t>(length) : 0);
  while (text.ends_with('\n')) text.pop_back();
  std::ranges::replace(text, '\n', ' ');
  return text;
}

}  // namespace berth::nbd
