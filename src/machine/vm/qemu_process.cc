#include "machine/vm/qemu_process.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/process.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr std::size_t last_words_max = 2048;

Result<Fd> open_log(const std::string& path) {
  // A run's last words are its own.
  Fd log(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!log) return errno_failure(errno, fmt::format("cannot open QEMU's log '{}'", path));
  return log;
}

/// What the child does: only calls that are safe between fork and exec. Everything was opened
/// before.
struct Child {
  std::vector<char*> arguments;
  std::vector<char*> environment;
  std::vector<int> groups;  // cgroup.procs
  std::span<const int> inherited;
  int null = -1;
  int log = -1;
  int report = -1;  // an errno goes there if the program was not executed
  std::optional<uid_t> uid;
  gid_t gid = 0;

  [[noreturn]] void run() {
    const int step = prepare();
    const std::array<int, 2> failed = {step, errno};
    (void)!::write(report, failed.data(), sizeof failed);
    ::_exit(127);
  }

  /// The step that failed; does not return where none did.
  int prepare() {
    ::setsid();
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    for (const int signal : {SIGHUP, SIGINT, SIGPIPE, SIGTERM}) ::signal(signal, SIG_DFL);
    for (const int group : groups)
      if (::write(group, "0", 1) != 1) return 1;
    for (const int from : {STDOUT_FILENO, STDERR_FILENO})
      if (::dup2(log, from) < 0) return 2;
    if (::dup2(null, STDIN_FILENO) < 0) return 2;
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 3;
    if (uid) {
      // The raw calls: glibc's would signal threads that do not exist here.
      if (::syscall(SYS_setgroups, 0, nullptr) != 0) return 4;
      if (::syscall(SYS_setresgid, gid, gid, gid) != 0) return 4;
      if (::syscall(SYS_setresuid, *uid, *uid, *uid) != 0) return 4;
    }
    for (const int fd : inherited)
      if (::fcntl(fd, F_SETFD, 0) != 0) return 2;
    ::execve(arguments.front(), arguments.data(), environment.data());
    return 5;
  }
};

const char* name_of_step(int step) {
  switch (step) {
    case 1: return "cannot enter its control group";
    case 2: return "cannot give it its open files";
    case 3: return "cannot give up new privileges";
    case 4: return "cannot become its own user";
    default: return "cannot execute it";
  }
}

std::string command_line_of(const std::string& pid) {
  std::ifstream file(fmt::format("/proc/{}/cmdline", pid));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

Result<QemuProcess> launch_qemu(const QemuLaunch& launch) {
  const Fd log = TRY(open_log(launch.log_path));
  const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) return errno_failure(errno, "cannot open /dev/null");
  auto [reading, writing] = TRY(make_pipe());
  std::vector<Fd> groups;
  Child child{.arguments = pointers_to(launch.arguments),
              .environment = pointers_to(launch.environment),
              .groups = {},
              .inherited = launch.inherited,
              .null = null.get(),
              .log = log.get(),
              .report = writing.get(),
              .uid = launch.uid,
              .gid = launch.gid};
  for (const std::string& path : launch.process_files) {
    groups.emplace_back(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!groups.back()) return errno_failure(errno, fmt::format("cannot open '{}'", path));
    child.groups.push_back(groups.back().get());
  }
  // Whatever a library has opened without it.
  ::close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);

  const pid_t pid = ::fork();
  if (pid < 0) return errno_failure(errno, "cannot fork");
  if (pid == 0) child.run();
  writing = Fd();
  std::array<int, 2> failed{};
  if (::read(reading.get(), failed.data(), sizeof failed) == sizeof failed) {
    ::waitpid(pid, nullptr, 0);
    return errno_failure(
        failed[1], fmt::format("'{}': {}", launch.arguments.front(), name_of_step(failed[0])));
  }
  return QemuProcess{.pid = pid, .pidfd = TRY(open_pidfd(pid))};
}

std::optional<QemuProcess> find_qemu(const std::string& mark) {
  return find_process("qemu-system", mark);
}

std::optional<QemuProcess> find_process(const std::string& program, const std::string& mark) {
  for (const std::string& name : names_in("/proc")) {
    pid_t pid = 0;
    const auto [stop, code] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (code != std::errc{} || stop != name.data() + name.size() || pid == ::getpid()) continue;
    auto pidfd = open_pidfd(pid);
    const std::string words = command_line_of(name);
    if (!pidfd || !words.contains(mark) || !words.substr(0, words.find('\0')).contains(program))
      continue;
    return QemuProcess{.pid = pid, .pidfd = std::move(*pidfd)};
  }
  return std::nullopt;
}

std::string reap_qemu(const Fd& pidfd) {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd.get()), &info, WEXITED | WNOHANG) != 0 ||
      info.si_pid == 0)
    return {};
  if (info.si_code == CLD_EXITED) return fmt::format("exit code {}", info.si_status);
  return fmt::format("signal {} ({})", info.si_status, ::strsignal(info.si_status));
}

std::string last_words(const std::string& log_path) {
  std::ifstream file(log_path);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  while (text.ends_with('\n')) text.pop_back();
  if (text.size() > last_words_max) text.erase(0, text.size() - last_words_max);
  return text;
}

}  // namespace berth::machine
