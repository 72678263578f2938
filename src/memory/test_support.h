// A process whose memory is tracked, and files for it. Only tests include it.
#pragma once

#include <bit>
#include <charconv>
#include <csignal>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/test_support.h"
#include "base/fd.h"
#include "base/result.h"
#include "base/units.h"

namespace berth::memory {

constexpr std::uint64_t page = 4096;

/// Where memory objects are in tests: on a tmpfs.
constexpr const char* memory_place = "/dev/shm";

/// A file of zeros.
inline std::string make_file(const std::string& path, std::uint64_t size) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  CHECK(fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return path;
}
inline void write_at(const std::string& path, std::uint64_t offset, std::string_view bytes) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  CHECK(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
        static_cast<ssize_t>(bytes.size()));
}
inline std::string read_at(const std::string& path, std::uint64_t offset, std::size_t length) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string bytes(length, '\0');
  const ssize_t got = ::pread(fd.get(), bytes.data(), length, static_cast<off_t>(offset));
  CHECK(got >= 0);
  bytes.resize(static_cast<std::size_t>(got));
  return bytes;
}

/// berth-tracked-process (its source has the commands), ended with its owner.
class TrackedProcess {
 public:
  /// `environment` has NAME=VALUE; `prefix` is a command that executes what comes after it.
  explicit TrackedProcess(std::vector<std::string> environment = {},
                          std::vector<std::string> prefix = {}) {
    int to_child[2];
    int from_child[2];
    CHECK(::pipe2(to_child, O_CLOEXEC) == 0 && ::pipe2(from_child, O_CLOEXEC) == 0);
    commands_ = Fd(to_child[1]);
    answers_ = Fd(from_child[0]);
    const Fd child_input(to_child[0]);
    const Fd child_output(from_child[1]);
    posix_spawn_file_actions_t actions;
    CHECK(::posix_spawn_file_actions_init(&actions) == 0);
    ::posix_spawn_file_actions_adddup2(&actions, child_input.get(), STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, child_output.get(), STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, child_output.get(), STDERR_FILENO);
    std::vector<std::string> command = std::move(prefix);
    command.emplace_back(BERTH_TRACKED_PROCESS);
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<char*> envp;
    for (std::string& variable : environment) envp.push_back(variable.data());
    envp.push_back(nullptr);
    const int error =
        ::posix_spawn(&pid_, argv.front(), &actions, nullptr, argv.data(), envp.data());
    ::posix_spawn_file_actions_destroy(&actions);
    CHECK(error == 0);
  }
  TrackedProcess(const TrackedProcess&) = delete;
  TrackedProcess& operator=(const TrackedProcess&) = delete;
  ~TrackedProcess() { kill(); }

  pid_t pid() const { return pid_; }

  /// Its answer; "" when it has ended.
  std::string ask(const std::string& command) {
    const std::string line = command + '\n';
    // A process that has ended closes its end: an error, not a signal.
    ::signal(SIGPIPE, SIG_IGN);
    if (::write(commands_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      return read_line();
    return read_line();
  }
  /// Its memory, as it sees it itself.
  std::string peek(std::uint64_t offset, std::size_t length) {
    const std::string answer = ask("address");
    CHECK(answer.starts_with("ok "));
    std::uint64_t address = 0;
    std::from_chars(answer.data() + 3, answer.data() + answer.size(), address);
    std::string bytes(length, '\0');
    iovec into{.iov_base = bytes.data(), .iov_len = length};
    iovec from{.iov_base = std::bit_cast<void*>(address + offset), .iov_len = length};
    CHECK(::process_vm_readv(pid_, &into, 1, &from, 1, 0) == static_cast<ssize_t>(length));
    return bytes;
  }
  template <typename... Words>
  void tell(std::string_view command, Words... words) {
    std::string line(command);
    ((line += fmt::format(" {}", words)), ...);
    const std::string answer = ask(line);
    if (answer != "ok")
      must_failed(line.c_str(), Error(ErrorKind::internal, answer), __FILE__, __LINE__);
  }

  /// Closes its input, waits for its end; its exit status, or -1 for a signal.
  int finish() {
    commands_.reset();
    return wait();
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    wait();
  }

 private:
  int wait() {
    int status = 0;
    CHECK(::waitpid(std::exchange(pid_, -1), &status, 0) > 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string read_line() {
    constexpr int patience_ms = 60'000;
    std::string line;
    for (;;) {
      pollfd waiting{.fd = answers_.get(), .events = POLLIN, .revents = 0};
      CHECK(::poll(&waiting, 1, patience_ms) == 1);
      char byte = 0;
      if (::read(answers_.get(), &byte, 1) != 1 || byte == '\n') return line;
      line += byte;
    }
  }

  Fd commands_;
  Fd answers_;
  pid_t pid_ = -1;
};

}  // namespace berth::memory
