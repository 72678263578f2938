#include "machine/vm/freeze_watchdog.h"

#include <cerrno>
#include <csignal>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/process.h"

namespace berth::machine {
namespace {

constexpr int watchdog_fd = 3;  // its end of the pipe, and the last descriptor it has
// For its process to end, once it is decided.
constexpr std::chrono::milliseconds watchdog_end_max{1000};

/// One end of the pipe for it, /dev/null as its input and output, our standard error.
class Spawn {
 public:
  Spawn() {
    ::posix_spawn_file_actions_init(&files_);
    ::posix_spawnattr_init(&attributes_);
  }
  Spawn(const Spawn&) = delete;
  Spawn& operator=(const Spawn&) = delete;
  ~Spawn() {
    ::posix_spawn_file_actions_destroy(&files_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  Result<pid_t> start(const std::string& program, std::vector<std::string> arguments,
                      const Fd& pipe) {
    ::posix_spawn_file_actions_adddup2(&files_, pipe.get(), watchdog_fd);
    ::posix_spawn_file_actions_addopen(&files_, STDIN_FILENO, "/dev/null", O_RDWR, 0);
    ::posix_spawn_file_actions_adddup2(&files_, STDIN_FILENO, STDOUT_FILENO);
    ::posix_spawn_file_actions_addclosefrom_np(&files_, watchdog_fd + 1);

    // What is to end us must not end it, not even before it can ignore that itself.
    sigset_t blocked;
    sigset_t defaults;
    ::sigemptyset(&blocked);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&blocked, signal);
    ::sigfillset(&defaults);
    ::posix_spawnattr_setsigmask(&attributes_, &blocked);
    ::posix_spawnattr_setsigdefault(&attributes_, &defaults);
    ::posix_spawnattr_setflags(&attributes_,
                               POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_t pid = -1;
    const int error =
        ::posix_spawn(&pid, program.c_str(), &files_, &attributes_, pointers.data(), environ);
    if (error != 0) return errno_failure(error, fmt::format("cannot start '{}'", program));
    return pid;
  }

 private:
  posix_spawn_file_actions_t files_{};
  posix_spawnattr_t attributes_{};
};

}  // namespace

Result<FreezeWatchdog> FreezeWatchdog::start(const std::string& program,
                                             const std::string& agent_socket, Duration limit) {
  const auto failed = [](Error error) {
    return failure(std::move(error).with_context("no freeze of the guest without a watchdog"));
  };
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
    return failed(Error::from_errno(errno, "cannot create a pipe"));
  FreezeWatchdog watchdog(Fd{ends[0]}, Fd{ends[1]});
  auto spawned = watchdog.spawn(program, agent_socket, limit);
  if (!spawned) return failed(std::move(spawned).error());
  return watchdog;
}

Result<void> FreezeWatchdog::spawn(const std::string& program, const std::string& agent_socket,
                                   Duration limit) {
  CHECK(::write(alive_.get(), "t", 1) == 1);  // a new pipe has room
  const auto limit_ms = limit / std::chrono::milliseconds(1);
  // Below watchdog_fd there are only standard descriptors, also in a process that has closed its
  // own.
  const Fd pipe(::fcntl(turn_.get(), F_DUPFD_CLOEXEC, watchdog_fd + 1));
  if (!pipe) return errno_failure(errno, "cannot duplicate a descriptor");
  pid_ =
      TRY(Spawn().start(program,
                        {"berth", "watchdog", "--agent-socket", agent_socket, "--fd",
                         fmt::format("{}", watchdog_fd), "--limit-ms", fmt::format("{}", limit_ms)},
                        pipe));
  auto pidfd = open_pidfd(pid_);
  if (pidfd) {
    pidfd_ = std::move(*pidfd);
    return {};
  }
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  return failure(std::move(pidfd).error());
}

FreezeWatchdog& FreezeWatchdog::operator=(FreezeWatchdog&& other) noexcept {
  if (this == &other) return *this;
  end();
  turn_ = std::move(other.turn_);
  alive_ = std::move(other.alive_);
  pidfd_ = std::move(other.pidfd_);
  pid_ = other.pid_;
  in_time_ = other.in_time_;
  return *this;
}

FreezeWatchdog::~FreezeWatchdog() { end(); }

bool FreezeWatchdog::dismiss() {
  if (!turn_) return in_time_;
  char turn = 0;
  ssize_t taken = 0;
  do {
    taken = ::read(turn_.get(), &turn, 1);
  } while (taken < 0 && errno == EINTR);
  in_time_ = taken == 1;
  turn_.reset();
  alive_.reset();
  if (in_time_) (void)send_signal(pidfd_, SIGKILL);
  return in_time_;
}

void FreezeWatchdog::end() {
  turn_.reset();
  alive_.reset();  // it wakes up now, if it has not
  const Fd pidfd = std::move(pidfd_);
  if (!pidfd || !wait_for_end(pidfd, watchdog_end_max)) return;
  siginfo_t ended{};
  ::waitid(P_PIDFD, static_cast<id_t>(pidfd.get()), &ended, WEXITED | WNOHANG);
}

}  // namespace berth::machine
