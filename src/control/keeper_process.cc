#include "control/keeper_process.h"

#include <algorithm>
#include <array>

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/log.h"
#include "memory/process_maps.h"

namespace berth::control {
namespace {

constexpr off_t log_size_max = 1 << 20;  // bytes; then one older log is kept beside it
constexpr std::uint64_t log_tail_bytes_max = 2048;

/// Opens the log for appending; what has grown too long becomes LOG.1 first.
Result<Fd> open_log(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0 && status.st_size > log_size_max) {
    ::rename(path.c_str(), (path + ".1").c_str());
  }
  Fd log(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
  if (!log) return errno_failure(errno, fmt::format("cannot open the keeper's log '{}'", path));
  return log;
}

class SpawnActions {
 public:
  SpawnActions() {
    ::posix_spawn_file_actions_init(&files_);
    ::posix_spawnattr_init(&attributes_);
  }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  ~SpawnActions() {
    ::posix_spawn_file_actions_destroy(&files_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  void open_null(int as) {
    ::posix_spawn_file_actions_addopen(&files_, as, "/dev/null", O_RDWR, 0);
  }
  /// With from == as, the descriptor loses its close-on-exec in the child.
  void duplicate(int from, int as) { ::posix_spawn_file_actions_adddup2(&files_, from, as); }

  /// A session of its own, no signal blocked, none of those ignored that a daemon ignores.
  void set_session_and_signals() {
    sigset_t none;
    sigset_t defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    for (const int signal : {SIGHUP, SIGINT, SIGPIPE, SIGTERM}) sigaddset(&defaults, signal);
    ::posix_spawnattr_setsigmask(&attributes_, &none);
    ::posix_spawnattr_setsigdefault(&attributes_, &defaults);
    ::posix_spawnattr_setflags(&attributes_,
                               POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }

  Result<pid_t> spawn(const std::string& program, const std::vector<std::string>& arguments) {
    pid_t pid = 0;
    const int error = ::posix_spawn(&pid, program.c_str(), &files_, &attributes_,
                                    pointers_to(arguments).data(), environ);
    if (error != 0) return errno_failure(error, fmt::format("cannot start '{}'", program));
    return pid;
  }

 private:
  posix_spawn_file_actions_t files_{};
  posix_spawnattr_t attributes_{};
};

}  // namespace

Result<KeeperProcess> launch_keeper(const KeeperLaunch& launch) {
  const Fd log = TRY(open_log(launch.log_path));
  // Its own name, not the program's path, which is often /proc/self/exe: people look for it in
  // lists of processes.
  std::vector<std::string> arguments = {"berth",          "keeper",    "--state-dir",
                                        launch.state_dir, "--run-dir", launch.run_dir};
  arguments.insert(arguments.end(), launch.arguments.begin(), launch.arguments.end());
  SpawnActions actions;
  actions.open_null(STDIN_FILENO);
  actions.duplicate(log.get(), STDOUT_FILENO);
  actions.duplicate(log.get(), STDERR_FILENO);
  for (const int fd : launch.listen_fds) {
    actions.duplicate(fd, fd);
    arguments.insert(arguments.end(), {"--listen-fd", fmt::format("{}", fd)});
  }
  actions.set_session_and_signals();

  // Not every library opens its descriptors close-on-exec, and a keeper that held our API's socket
  // would keep the next daemon from it.
  ::close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);

  KeeperProcess process;
  process.log_offset =
      static_cast<std::uint64_t>(std::max<off_t>(::lseek(log.get(), 0, SEEK_END), 0));
  process.pid = TRY(actions.spawn(launch.program, arguments));
  process.pidfd = TRY(open_pidfd(process.pid));  // our child: the pid is its own until it is reaped
  return process;
}

void hold_program() {
  auto maps = memory::ProcessMaps::open(::getpid(), "program");
  const auto mappings = maps ? maps->read() : failure(maps.error());
  if (!mappings) return log_warning("{}", mappings.error().message());
  for (const memory::Mapping& mapping : *mappings) {
    if (mapping.inode == 0 || mapping.is_writable) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of our own.
    auto* address = reinterpret_cast<void*>(mapping.address);
    // A kernel before 5.14 does not know it: then they wait.
    (void)::madvise(address, mapping.length, MADV_POPULATE_READ);
  }
}

Result<Fd> duplicate_from(const Fd& pidfd, int fd) {
  Fd duplicate(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0)));
  if (!duplicate) return errno_failure(errno, "cannot duplicate a socket of the keeper");
  return duplicate;
}

std::string reap(const Fd& pidfd) {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd.get()), &info, WEXITED | WNOHANG) != 0 ||
      info.si_pid == 0)
    return {};
  if (info.si_code == CLD_EXITED) return fmt::format("exit code {}", info.si_status);
  return fmt::format("signal {}", info.si_status);
}

std::string log_tail(const std::string& path, std::uint64_t offset) {
  const Fd log(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (!log || ::fstat(log.get(), &status) != 0) return {};
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size > log_tail_bytes_max) offset = std::max(offset, size - log_tail_bytes_max);
  std::string text(log_tail_bytes_max, '\0');
  const ssize_t length = ::pread(log.get(), text.data(), text.size(), static_cast<off_t>(offset));
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

}  // namespace berth::control
