#include "agent/program/child.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <grp.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

using Step = StartFailure::Step;

constexpr std::string_view default_path =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr gid_t terminal_group = 5;  // "tty", as /dev/pts is mounted

/// What the child needs, made before the fork: it must not allocate much, and never fails at it.
struct Prepared {
  std::vector<std::string> environment;
  std::vector<std::string> candidates;  // files that may be the program
  std::vector<gid_t> groups;
  std::vector<char*> argument_pointers;
  std::vector<char*> environment_pointers;
};

struct ChildEnds {
  Fd input, output, errors, terminal, report;
};

bool has_variable(const std::vector<std::string>& environment, std::string_view name) {
  return std::ranges::any_of(environment, [&](const std::string& entry) {
    return entry.starts_with(name) && entry.size() > name.size() && entry[name.size()] == '=';
  });
}

std::string_view path_of(const std::vector<std::string>& environment) {
  for (const std::string_view entry : environment) {
    if (entry.starts_with("PATH=")) return entry.substr(5);
  }
  return default_path;
}

std::vector<char*> pointers_to(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

Prepared prepare(const ChildSpec& spec) {
  Prepared prepared{.environment = spec.environment, .groups = spec.user.groups};
  // As initgroups(3) does.
  prepared.groups.insert(prepared.groups.begin(), spec.user.gid);
  auto& environment = prepared.environment;
  if (!has_variable(environment, "PATH"))
    environment.push_back("PATH=" + std::string(default_path));
  if (!has_variable(environment, "HOME")) environment.push_back("HOME=" + spec.user.home);
  if (spec.has_terminal && !has_variable(environment, "TERM"))
    environment.emplace_back("TERM=xterm");
  const std::string& program = spec.arguments.front();
  if (program.contains('/')) {
    prepared.candidates.push_back(program);
  } else if (!program.empty()) {
    std::string_view path = path_of(environment);
    while (true) {
      const std::size_t end = std::min(path.find(':'), path.size());
      const std::string_view directory = end == 0 ? "." : path.substr(0, end);
      prepared.candidates.push_back(std::string(directory) + "/" + program);
      if (end == path.size()) break;
      path.remove_prefix(end + 1);
    }
  }
  prepared.argument_pointers = pointers_to(spec.arguments);
  prepared.environment_pointers = pointers_to(environment);
  return prepared;
}

Result<void> make_pipe(Fd& reading, Fd& writing) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_failure(errno, "cannot make a pipe");
  reading = Fd(ends[0]);
  writing = Fd(ends[1]);
  return {};
}

void set_not_blocking(const Fd& fd) { ::fcntl(fd.get(), F_SETFL, O_NONBLOCK); }

/// The image's programs open /dev/stdout and the like again, as who they are.
void give(const Fd& fd, uid_t uid, gid_t gid) { (void)::fchown(fd.get(), uid, gid); }

Result<void> make_terminal(const ChildSpec& spec, Child& child, ChildEnds& ends) {
  child.terminal = Fd(::open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
  if (!child.terminal) return errno_failure(errno, "cannot make a terminal");
  int lock = 0;
  if (::ioctl(child.terminal.get(), TIOCSPTLCK, &lock) != 0) {
    return errno_failure(errno, "cannot unlock a terminal");
  }
  ends.terminal = Fd(::ioctl(child.terminal.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!ends.terminal) return errno_failure(errno, "cannot open a terminal");
  const winsize size{.ws_row = spec.rows, .ws_col = spec.columns, .ws_xpixel = 0, .ws_ypixel = 0};
  ::ioctl(child.terminal.get(), TIOCSWINSZ, &size);
  give(ends.terminal, spec.user.uid, terminal_group);
  child.terminal_kept = Fd(::fcntl(ends.terminal.get(), F_DUPFD_CLOEXEC, 3));
  return {};
}

Result<void> make_pipes(const ChildSpec& spec, Child& child, ChildEnds& ends) {
  if (spec.has_input) {
    TRY(make_pipe(ends.input, child.input));
    set_not_blocking(child.input);
  } else {
    ends.input = Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!ends.input) return errno_failure(errno, "cannot open /dev/null");
  }
  TRY(make_pipe(child.output, ends.output));
  TRY(make_pipe(child.errors, ends.errors));
  set_not_blocking(child.output);
  set_not_blocking(child.errors);
  for (const Fd* end : {&ends.input, &ends.output, &ends.errors}) {
    if (end != &ends.input || spec.has_input) give(*end, spec.user.uid, spec.user.gid);
  }
  return {};
}

// From here on in the child.

[[noreturn]] void report_failure(const ChildEnds& ends, Step step) {
  const StartFailure start_failure{.step = step, .errno_value = errno};
  (void)::write(ends.report.get(), &start_failure, sizeof start_failure);
  ::_exit(125);
}

void join_cgroup(int cgroup, const ChildEnds& ends) {
  if (cgroup < 0) return;
  const Fd members(::openat(cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC));
  if (!members || ::write(members.get(), "0", 1) != 1) report_failure(ends, Step::prepare);
}

void become_user(const User& user, const std::vector<gid_t>& groups, const ChildEnds& ends) {
  if (::setgroups(groups.size(), groups.data()) != 0 ||
      ::setresgid(user.gid, user.gid, user.gid) != 0 ||
      ::setresuid(user.uid, user.uid, user.uid) != 0) {
    report_failure(ends, Step::user);
  }
}

[[noreturn]] void execute(const Prepared& prepared, const ChildEnds& ends) {
  int why = ENOENT;
  for (const std::string& candidate : prepared.candidates) {
    ::execve(candidate.c_str(), prepared.argument_pointers.data(),
             prepared.environment_pointers.data());
    if (errno == ENOENT || errno == ENOTDIR) continue;
    why = errno;
    // As a shell does: what may not be run here may be there.
    if (errno != EACCES) break;
  }
  errno = why;
  report_failure(ends, Step::program);
}

[[noreturn]] void run_child(const ChildSpec& spec, const Prepared& prepared,
                            const ChildEnds& ends) {
  ::setsid();
  join_cgroup(spec.cgroup, ends);
  (void)write_setting("/proc/self/oom_score_adj", "0");
  if (ends.terminal && ::ioctl(ends.terminal.get(), TIOCSCTTY, 0) != 0) {
    report_failure(ends, Step::prepare);
  }
  const std::array<int, 3> from{(ends.terminal ? ends.terminal : ends.input).get(),
                                (ends.terminal ? ends.terminal : ends.output).get(),
                                (ends.terminal ? ends.terminal : ends.errors).get()};
  for (int fd = 0; fd < 3; ++fd) {
    if (::dup2(from[static_cast<std::size_t>(fd)], fd) < 0) report_failure(ends, Step::prepare);
  }
  become_user(spec.user, prepared.groups, ends);
  if (::chdir(spec.working_directory.c_str()) != 0) report_failure(ends, Step::working_directory);
  reset_signals();
  execute(prepared, ends);
}

}  // namespace

void reset_signals() {
  for (int number = 1; number < NSIG; ++number) std::signal(number, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

Result<Child> start_child(const ChildSpec& spec) {
  const Prepared prepared = prepare(spec);
  Child child;
  ChildEnds ends;
  if (spec.has_terminal) {
    TRY(make_terminal(spec, child, ends));
  } else {
    TRY(make_pipes(spec, child, ends));
  }
  TRY(make_pipe(child.report, ends.report));
  set_not_blocking(child.report);
  child.pid = ::fork();
  if (child.pid < 0) return errno_failure(errno, "cannot fork");
  if (child.pid == 0) run_child(spec, prepared, ends);
  return child;
}

Error describe(const StartFailure& start_failure, const ChildSpec& spec) {
  const int why = start_failure.errno_value;
  switch (start_failure.step) {
    case Step::program:
      return Error::from_errno(why, "cannot run '" + spec.arguments.front() + "'");
    case Step::working_directory:
      return Error::from_errno(why, "cannot change to '" + spec.working_directory + "'");
    case Step::user:
      return Error::from_errno(why, "cannot become user " + std::to_string(spec.user.uid));
    case Step::prepare: break;
  }
  return Error::from_errno(why, "cannot prepare '" + spec.arguments.front() + "'");
}

int shell_status(const StartFailure& start_failure) {
  if (start_failure.step != Step::program) return 125;
  return start_failure.errno_value == ENOENT || start_failure.errno_value == ENOTDIR ? 127 : 126;
}

}  // namespace berth::agent
