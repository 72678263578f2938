#include "base/process.h"

#include <array>
#include <cerrno>

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

namespace berth {

Result<Fd> open_pidfd(pid_t pid) {
  Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (pidfd) return pidfd;
  if (errno == ESRCH)
    return failure(ErrorKind::not_found, fmt::format("there is no process {}", pid));
  return errno_failure(errno, fmt::format("cannot watch process {}", pid));
}

bool has_ended(const Fd& pidfd) { return wait_for_end(pidfd, std::chrono::milliseconds(0)); }

bool wait_for_end(const Fd& pidfd, std::chrono::milliseconds patience) {
  pollfd watched{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  return ::poll(&watched, 1, static_cast<int>(patience.count())) != 0;
}

Result<void> send_signal(const Fd& pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd.get(), signal, nullptr, 0) == 0) return {};
  if (errno == ESRCH) return failure(ErrorKind::not_found, "the process is gone");
  return errno_failure(errno, "cannot signal a process");
}

std::vector<char*> pointers_to(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

Result<Pipe> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_failure(errno, "cannot make a pipe");
  return Pipe{.reading = Fd(ends[0]), .writing = Fd(ends[1])};
}

}  // namespace berth
