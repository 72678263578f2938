#include "container/process_sandbox.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/directories.h"
#include "base/log.h"
#include "base/process.h"
#include "container/guest_network.h"
#include "container/process_root.h"
#include "container/program_run.h"
#include "machine/control_messages.h"
#include "machine/host/program.h"
#include "machine/layout.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"
#include "memory/memory_use.h"

namespace berth::container {
namespace {

using machine::Json;

constexpr const char* runtime_name = "runc";
constexpr const char* network_name = "slirp4netns";
constexpr const char* network_mark = "/network.sock";  // after its directory
constexpr const char* name_in_runtime = "sandbox";     // each has a directory of its own there
constexpr std::chrono::milliseconds runtime_patience{30'000};
constexpr int network_patience_ms = 10'000;
constexpr Duration network_end_patience = std::chrono::seconds(2);
constexpr Duration group_patience = std::chrono::seconds(5);
constexpr Duration retry = std::chrono::milliseconds(5);
constexpr int backlog = 4;

/// What the agent listens at; its own, whoever made it.
Result<Fd> listen_at(const std::string& path) {
  TRY(machine::check_socket_path(path));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener ||
      ::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(listener.get(), backlog) != 0)
    return errno_failure(errno, fmt::format("cannot listen at '{}'", path));
  return listener;
}

Result<std::string> find_program(const char* name) {
  std::string path = machine::find_program(name);
  if (path.empty()) {
    return failure(ErrorKind::precondition,
                   fmt::format("{} is missing, which a container in the host's kernel needs: "
                               "apt-get install {}",
                               name, name));
  }
  return path;
}

/// As `runc state` has it. `not_found` where it knows none.
struct Known {
  pid_t pid = 0;
  std::string status;
};

Result<Known> ask_runtime(const std::string& state) {
  const std::string program = TRY(find_program(runtime_name));
  const auto said =
      machine::run_program({program, "--root", state, "state", name_in_runtime}, runtime_patience);
  if (!said) return failure(ErrorKind::not_found, said.error().message());
  const Json json = TRY(machine::parse_json(*said));
  if (!json.is_object()) return failure(ErrorKind::corrupt, "what runc says is no state");
  return Known{.pid = json.value("pid", 0), .status = json.value("status", "")};
}

}  // namespace

ProcessSandbox::ProcessSandbox(UringLoop& loop, Options options)
    : loop_(loop),
      options_(std::move(options)),
      tasks_(loop),
      process_watch_(loop),
      changed_(loop) {}

ProcessSandbox::~ProcessSandbox() = default;

std::string ProcessSandbox::directory() const { return options_.run.sandbox(run_.to_string()); }

std::string ProcessSandbox::agent_socket() const {
  return fmt::format("{}/{}", directory(), machine::agent_socket_name);
}

std::string ProcessSandbox::group_name() const {
  return container_control_group(options_.id, run_);
}

/// One command to runc, which takes some ten milliseconds.
Task<Result<void>> ProcessSandbox::runtime(std::vector<std::string> arguments) {
  const std::string state = directory() + "/runc";
  arguments.insert(arguments.begin(), {"--root", state});
  arguments.emplace_back(name_in_runtime);
  co_return co_await offload(loop_, [&] {
    return run_to_end({.program = runtime_name,
                       .package = runtime_name,
                       .arguments = arguments,
                       .directory = "/",
                       .environment = {}},
                      {.stop = {}, .whole = runtime_patience});
  });
}

// --- Starting.

Task<Result<void>> ProcessSandbox::start(Start start, Id128 run) {
  run_ = run;
  auto launched = co_await launch(std::move(start));
  if (launched) co_return launched;
  find_last_words();
  if (launched.error().kind() == ErrorKind::io_error && !last_words_.empty())
    launched = failure(ErrorKind::io_error, last_words_);
  if (process_) {
    co_await end();
  } else {
    co_await clean_up();
  }
  co_return failure(std::move(launched).error().with_context(
      fmt::format("cannot start '{}' in the host's kernel", options_.name)));
}

Task<Result<void>> ProcessSandbox::launch(Start start) {
  if (::geteuid() != 0) {
    co_return failure(ErrorKind::permission,
                      "a container in the host's kernel needs a daemon that is root");
  }
  first_user_ = CO_TRY(first_sandbox_user(options_.uid));
  const std::string program = CO_TRY(find_program(runtime_name));
  if (options_.network) CO_TRY(find_program(network_name));
  CO_TRY(prepare_directory());
  group_ = machine::ControlGroup::open(group_name());
  CO_TRY(write_bundle(start));
  const Fd listener = CO_TRY(listen_at(agent_socket()));
  const Pipe life = CO_TRY(make_pipe());
  // Whoever runc leaves behind is ours to reap.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  ::unlink(options_.run.qemu_log(options_.name).c_str());  // a run's last words are its own

  const std::string pid_file = directory() + "/pid";
  const ProcessRoot root{.image = start.image,
                         .directory = directory(),
                         .first_user = first_user_,
                         .users = sandbox_users,
                         .layer_bytes = options_.memory / 2};
  const ProgramInRoot run{
      .arguments = {program, "--root", directory() + "/runc", "--log",
                    options_.run.qemu_log(options_.name), "run", "--detach", "--bundle",
                    directory(), "--pid-file", pid_file, "--preserve-fds", "2", name_in_runtime},
      .log_path = options_.run.qemu_log(options_.name),
      .inherited = {listener.get(), life.writing.get()}};
  CO_TRY(co_await offload(loop_, [&] { return run_in_root(root, run); }));
  const std::string text = CO_TRY(machine::read_small_file(pid_file));
  const auto pid = static_cast<pid_t>(std::strtol(text.c_str(), nullptr, 10));
  process_ = machine::QemuProcess{.pid = pid, .pidfd = CO_TRY(open_pidfd(pid))};
  tasks_.spawn(watch_process());
  if (!options_.network) co_return Result<void>{};
  co_return co_await offload(loop_, [&] { return start_network(life.reading); });
}

Result<void> ProcessSandbox::prepare_directory() {
  TRY(make_directories(directory()));
  // Its users have to get through to their root.
  for (const std::string& path : {options_.run.sandboxes(), directory()})
    if (::chmod(path.c_str(), 0711) != 0)
      return errno_failure(errno, fmt::format("cannot change the mode of '{}'", path));
  return {};
}

Result<void> ProcessSandbox::write_bundle(const Start& start) {
  auto profile = machine::read_small_file(seccomp_profile_path);
  if (!profile) {
    return failure(ErrorKind::precondition,
                   fmt::format("{}: apt-get install golang-github-containers-common",
                               profile.error().message()));
  }
  const ProcessRoot root{.image = {}, .directory = directory()};
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0)
    return errno_failure(errno, "cannot see how many files may be open");
  const Json config = bundle_config({.hostname = options_.hostname,
                                     .root = root.root(),
                                     .agent = start.agent,
                                     .first_user = first_user_,
                                     .cpus = options_.cpus,
                                     .memory = options_.memory,
                                     .files_max = files.rlim_max,
                                     .control_group = group_.runtime_path()},
                                    TRY(seccomp_filter(*profile)));
  return machine::write_small_file(directory() + "/config.json", config.dump(2) + '\n');
}

/// It ends with the agent, which has the other end of `ends_with`. Returns when the interface is
/// there.
Result<void> ProcessSandbox::start_network(const Fd& ends_with) {
  const std::string program = TRY(find_program(network_name));
  Pipe ready = TRY(make_pipe());
  const std::string log = directory() + "/network.log";
  network_ = TRY(machine::launch_qemu(
      {.arguments = {program, "--configure", "--mtu=65520", "--disable-host-loopback",
                     "--enable-sandbox", "--enable-seccomp",
                     fmt::format("--cidr={}", guest_network::network),
                     fmt::format("--exit-fd={}", ends_with.get()),
                     fmt::format("--ready-fd={}", ready.writing.get()),
                     fmt::format("--api-socket={}{}", directory(), network_mark),
                     fmt::format("{}", process_->pid), "eth0"},
       .environment = {"PATH=/usr/bin:/bin", "LC_ALL=C"},
       .log_path = log,
       .process_files = {},
       .inherited = {ends_with.get(), ready.writing.get()},
       .uid = std::nullopt,
       .gid = 0}));
  // Its end is seen as well: nobody else has that end then.
  ready.writing.reset();
  pollfd watched{.fd = ready.reading.get(), .events = POLLIN, .revents = 0};
  char byte = 0;
  if (::poll(&watched, 1, network_patience_ms) == 1 && ::read(watched.fd, &byte, 1) == 1) return {};
  const std::string words = machine::last_words(log);
  return failure(ErrorKind::internal, fmt::format("its network does not come up: {}",
                                                  words.empty() ? "no word" : words));
}

Task<Result<bool>> ProcessSandbox::adopt(Id128 run, std::string /*template_memory*/,
                                         bool /*may_stand*/) {
  run_ = run;
  group_ = machine::ControlGroup::open(group_name());
  const auto known =
      co_await offload(loop_, [state = directory() + "/runc"] { return ask_runtime(state); });
  const bool runs = known && (known->status == "running" || known->status == "paused");
  if (runs) {
    if (auto pidfd = open_pidfd(known->pid))
      process_ = machine::QemuProcess{.pid = known->pid, .pidfd = std::move(*pidfd)};
  }
  network_ = machine::find_process(network_name, directory() + network_mark);
  const bool is_whole = process_ && (!options_.network || network_.has_value());
  if (!is_whole) {
    find_last_words();
    if (process_ || (known && known->status == "created"))
      last_words_ = "what it was to start with was not complete";
    if (process_) {
      frozen_ = known->status == "paused";
      tasks_.spawn(watch_process());
      co_await end();
    } else {
      co_await clean_up();
    }
    co_return false;
  }
  frozen_ = known->status == "paused";
  log_info("found process {}: {}", process_->pid, known->status);
  tasks_.spawn(watch_process());
  co_return true;
}

// --- While it runs.

Task<Result<void>> ProcessSandbox::freeze() {
  CO_TRY(co_await runtime({"pause"}));
  frozen_ = true;
  co_return Result<void>{};
}

Task<Result<void>> ProcessSandbox::thaw() {
  CO_TRY(co_await runtime({"resume"}));
  frozen_ = false;
  co_return Result<void>{};
}

Task<Result<ProcessSandbox::Trimmed>> ProcessSandbox::trim() {
  if (!memory::has_swap()) {
    co_return failure(ErrorKind::precondition,
                      "this host has no swap, which a container's memory could go to: add some "
                      "(`berth host swap`)");
  }
  Trimmed trimmed{.before = CO_TRY(group_.memory()), .after = {}};
  CO_TRY(co_await offload(loop_, [this] { return group_.reclaim(); }));
  trimmed.after = CO_TRY(group_.memory());
  co_return trimmed;
}

// --- Ending.

void ProcessSandbox::find_last_words() {
  last_words_ = container::last_words(machine::last_words(options_.run.qemu_log(options_.name)));
}

Task<> ProcessSandbox::watch_process() {
  if (!co_await process_watch_.ended(process_->pidfd)) co_return;
  const std::string how = machine::reap_qemu(process_->pidfd);
  find_last_words();
  if (last_words_.empty() && how != "exit code 0") last_words_ = how;
  co_await clean_up();
  process_.reset();
  frozen_ = false;
  changed_.notify_all();
}

Task<> ProcessSandbox::end() {
  if (process_) {
    (void)send_signal(process_->pidfd, SIGKILL);
    // Of what a v1 freezer holds, nobody ends before it goes on.
    if (frozen_) (void)co_await thaw();
  }
  (void)co_await ended();
}

Task<std::string> ProcessSandbox::ended() {
  while (process_ && !closing_) co_await changed_.wait();
  co_return last_words_;
}

/// It ends by itself, in an instant: what it watches is gone.
Task<> ProcessSandbox::end_network() {
  if (!network_) co_return;
  const Instant deadline = loop_.now() + network_end_patience;
  while (!has_ended(network_->pidfd) && loop_.now() < deadline) co_await loop_.sleep(retry);
  (void)send_signal(network_->pidfd, SIGKILL);
  while (!has_ended(network_->pidfd)) co_await loop_.sleep(retry);
  (void)machine::reap_qemu(network_->pidfd);
  network_.reset();
}

/// What one that is gone has left; also one of which runc was killed half way.
Task<> ProcessSandbox::clean_up() {
  co_await end_network();
  if (machine::path_exists(directory() + "/runc")) {
    if (const auto gone = co_await runtime({"delete", "--force"}); !gone)
      log_warning("{}", gone.error().message());
  }
  const Instant deadline = loop_.now() + group_patience;
  while (!group_.remove() && loop_.now() < deadline) {
    group_.kill();
    co_await loop_.sleep(retry);
  }
  (void)machine::remove_tree(directory());
}

Task<> ProcessSandbox::close() {
  closing_ = true;
  process_watch_.cancel();
  changed_.notify_all();  // nothing will change any more
  co_await tasks_.drained();
}

}  // namespace berth::container
