#include "machine/host/program.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/process.h"
#include "machine/host/host_text.h"

namespace berth::machine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t output_size_max = 64 * 1024;  // bytes

std::vector<char*> pointers_to(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// All that comes until the other end is closed.
Result<std::string> read_until_end(const Fd& from, Clock::time_point deadline) {
  std::string text;
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd watched{.fd = from.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&watched, 1, static_cast<int>(std::max<long>(left.count(), 0)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return failure(ErrorKind::timed_out, "it does not end");
    char buffer[4096];
    const ssize_t count = ::read(from.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    const std::size_t room = output_size_max - text.size();
    text.append(buffer, std::min(static_cast<std::size_t>(count), room));
  }
}

}  // namespace

Result<ChildProgram> ChildProgram::start(const ProgramStart& program, const Fd& output) {
  std::vector<std::string> environment = program.environment;
  for (char** variable = environ; *variable != nullptr; ++variable)
    environment.emplace_back(*variable);

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&files, output.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, output.get(), STDERR_FILENO);
  ::posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
  if (!program.directory.empty())
    ::posix_spawn_file_actions_addchdir_np(&files, program.directory.c_str());
  sigset_t none;
  sigset_t defaults;
  sigemptyset(&none);
  sigemptyset(&defaults);
  for (const int signal : {SIGHUP, SIGINT, SIGPIPE, SIGTERM}) sigaddset(&defaults, signal);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &defaults);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  const int group_flag = program.own_group ? POSIX_SPAWN_SETPGROUP : 0;
  ::posix_spawnattr_setflags(
      &attributes, static_cast<short>(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | group_flag));
  pid_t pid = 0;
  const std::vector<char*> arguments = pointers_to(program.arguments);
  const int error = ::posix_spawnp(&pid, arguments[0], &files, &attributes, arguments.data(),
                                   pointers_to(environment).data());
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&files);
  if (error != 0) return errno_failure(error, fmt::format("cannot run '{}'", arguments[0]));
  return ChildProgram(pid, program.own_group);
}

ChildProgram::ChildProgram(ChildProgram&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), has_group_(other.has_group_) {}

ChildProgram::~ChildProgram() {
  if (pid_ > 0) end();
}

int ChildProgram::wait() {
  siginfo_t ended{};
  while (::waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOWAIT) < 0 &&
         errno == EINTR) {
  }
  return end();  // of whom it has left behind, too; its number is its own until it is reaped
}

int ChildProgram::end() {
  ::kill(has_group_ ? -pid_ : pid_, SIGKILL);
  int status = -1;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
  return status;
}

std::string find_program(const std::string& name) {
  const char* path = std::getenv("PATH");
  for (const std::string_view directory : split(path == nullptr ? "/usr/bin:/bin" : path, ":")) {
    std::string candidate = fmt::format("{}/{}", directory, name);
    struct stat status{};
    if (::stat(candidate.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
        ::access(candidate.c_str(), X_OK) == 0)
      return candidate;
  }
  return {};
}

Result<std::string> run_program(const std::vector<std::string>& arguments,
                                std::chrono::milliseconds patience) {
  auto [reading, writing] = TRY(make_pipe());
  auto child = TRY(ChildProgram::start({.arguments = arguments}, writing));
  writing.reset();
  std::string text = TRY(read_until_end(reading, Clock::now() + patience));
  const int status = child.wait();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return text;
  return failure(ErrorKind::io_error, WIFEXITED(status)
                                          ? fmt::format("it ends with {}", WEXITSTATUS(status))
                                          : fmt::format("it ends by signal {}", WTERMSIG(status)));
}

}  // namespace berth::machine
