#include "container/process_root.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/process.h"
#include "container/program_run.h"

namespace berth::container {
namespace {

constexpr int mount_attempts_max = 5;  // a loop device that we share may go just then
constexpr std::chrono::milliseconds mount_patience{10'000};
constexpr int first_inherited = 3;
constexpr int above_inherited = 100;  // where descriptors wait that become those

Result<void> make_directory(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
    return errno_failure(errno, fmt::format("cannot make '{}'", path));
  return {};
}

Result<void> mount_at(const char* type, const std::string& target, unsigned long flags,
                      const std::string& options) {
  if (::mount(type, target.c_str(), type, flags, options.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot mount a {} at '{}'", type, target));
  return {};
}

/// From here on nothing that is mounted is seen by others, nor what they mount from now on here.
Result<void> leave_mount_namespace() {
  if (::unshare(CLONE_NEWNS) != 0) return errno_failure(errno, "cannot make a mount namespace");
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    return errno_failure(errno, "cannot make a mount namespace private");
  return {};
}

/// mount(8) takes the loop device that the image has already, if there is one.
Result<void> mount_image(const ProcessRoot& root, const std::string& target) {
  Result<void> mounted;
  for (int attempt = 0; attempt < mount_attempts_max; ++attempt) {
    mounted = run_to_end({.program = "mount",
                          .package = "mount",
                          .arguments = {"-t", "erofs", "-o", "ro,loop,nodev", root.image, target},
                          .directory = "/",
                          .environment = {}},
                         {.stop = {}, .whole = mount_patience});
    if (mounted) break;
  }
  return mounted;
}

/// A user namespace whose users are these of the host; it lives as long as the descriptor.
Result<Fd> make_users(const ProcessRoot& root) {
  // It does nothing, and so needs no memory of its own.
  const pid_t child = static_cast<pid_t>(
      ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  if (child < 0) return errno_failure(errno, "cannot make a user namespace");
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (true) ::pause();
  }
  auto made = [&]() -> Result<Fd> {
    for (const char* map : {"uid_map", "gid_map"}) {
      const std::string path = fmt::format("/proc/{}/{}", child, map);
      const std::string text = fmt::format("0 {} {}\n", root.first_user, root.users);
      const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (!file || ::write(file.get(), text.data(), text.size()) < 0)
        return errno_failure(errno, fmt::format("cannot write '{}'", path));
    }
    const std::string path = fmt::format("/proc/{}/ns/user", child);
    Fd users(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!users) return errno_failure(errno, "cannot open a user namespace");
    return users;
  }();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  return made;
}

/// The same file system once more, in its own place, with its users mapped: mount_setattr(2).
Result<void> map_users(const ProcessRoot& root, const std::string& target) {
  const Fd users = TRY(make_users(root));
  const Fd tree(static_cast<int>(
      ::syscall(SYS_open_tree, AT_FDCWD, target.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
  if (!tree) return errno_failure(errno, fmt::format("cannot open '{}'", target));
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_IDMAP;
  attributes.userns_fd = static_cast<std::uint64_t>(users.get());
  if (::syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH, &attributes, sizeof attributes) !=
      0) {
    if (errno != EINVAL && errno != ENOSYS)
      return errno_failure(errno, "cannot map the users of an image");
    return failure(ErrorKind::unsupported,
                   "this host's kernel cannot map the users of an image: a container in the "
                   "host's kernel needs Linux 5.19");
  }
  if (::syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, target.c_str(),
                MOVE_MOUNT_F_EMPTY_PATH) != 0)
    return errno_failure(errno, fmt::format("cannot mount at '{}'", target));
  return {};
}

/// With paths that need no escapes, and say nothing of the host to those within.
Result<void> mount_root(const ProcessRoot& root) {
  TRY(leave_mount_namespace());
  // Of this thread alone, since it has left the namespace.
  if (::chdir(root.directory.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot change to '{}'", root.directory));
  for (const char* path : {"image", "layer", "root"}) TRY(make_directory(path, 0700));
  TRY(mount_image(root, root.directory + "/image"));
  TRY(map_users(root, "image"));
  TRY(mount_at("tmpfs", "layer", MS_NODEV, fmt::format("mode=0700,size={}", root.layer_bytes)));
  TRY(make_directory("layer/upper", 0755));
  TRY(make_directory("layer/work", 0700));
  if (::chown("layer/upper", root.first_user, root.first_user) != 0)
    return errno_failure(errno, "cannot give away a container's root");
  return mount_at("overlay", "root", MS_NODEV,
                  "lowerdir=image,upperdir=layer/upper,workdir=layer/work");
}

/// What the child does: only calls that are safe between fork and exec.
struct Child {
  std::vector<char*> arguments;
  std::vector<char*> environment;
  std::vector<int> inherited;
  int log = -1;
  int null = -1;

  [[noreturn]] void run() const {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setsid();
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    for (const int signal : {SIGHUP, SIGINT, SIGPIPE, SIGTERM}) ::signal(signal, SIG_DFL);
    // First out of the way of each other.
    std::array<int, 8> waiting{};
    const std::size_t count = std::min(inherited.size(), waiting.size());
    for (std::size_t i = 0; i < count; ++i)
      waiting[i] = ::fcntl(inherited[i], F_DUPFD_CLOEXEC, above_inherited);
    ::dup2(null, STDIN_FILENO);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    for (std::size_t i = 0; i < count; ++i)
      ::dup2(waiting[i], first_inherited + static_cast<int>(i));
    ::close_range(first_inherited + static_cast<unsigned>(count), ~0U, CLOSE_RANGE_CLOEXEC);
    ::execve(arguments.front(), arguments.data(), environment.data());
    ::_exit(127);
  }
};

Result<void> run_program(const ProgramInRoot& program) {
  const Fd log(::open(program.log_path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
  if (!log) return errno_failure(errno, fmt::format("cannot open '{}'", program.log_path));
  const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) return errno_failure(errno, "cannot open /dev/null");
  const std::vector<std::string> environment = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"};
  const Child child{.arguments = pointers_to(program.arguments),
                    .environment = pointers_to(environment),
                    .inherited = program.inherited,
                    .log = log.get(),
                    .null = null.get()};
  const pid_t pid = ::fork();
  if (pid < 0) return errno_failure(errno, "cannot fork");
  if (pid == 0) child.run();
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return failure(
      ErrorKind::io_error,
      WIFEXITED(status)
          ? fmt::format("'{}' ended with {}", program.arguments.front(), WEXITSTATUS(status))
          : fmt::format("'{}' ended by signal {}", program.arguments.front(), WTERMSIG(status)));
}

}  // namespace

Result<void> run_in_root(const ProcessRoot& root, const ProgramInRoot& program) {
  // A namespace is a thread's: this one lives as long as that is wanted.
  Result<void> ran;
  std::thread([&] {
    ran = mount_root(root);
    if (ran) ran = run_program(program);
  }).join();
  return ran;
}

}  // namespace berth::container
