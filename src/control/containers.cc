#include "control/containers.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/units.h"
#include "control/keeper_failure.h"
#include "control/keeper_process.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"
#include "machine/host/accelerator.h"
#include "machine/vm/machine_store.h"
#include "machine/volume_directory.h"

namespace berth::control {
using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;
using container::ContainerRecord;

namespace {

constexpr Milliseconds hello_timeout{10'000};
constexpr Milliseconds launch_patience{30'000};
constexpr Milliseconds start_timeout{180'000};
constexpr Milliseconds stop_grace{60'000};    // beyond its own time
constexpr Milliseconds end_patience{30'000};  // of a keeper whose container has ended, and readers
constexpr Milliseconds connect_retry_first{2};
constexpr Milliseconds connect_retry_max{50};
constexpr Milliseconds restart_backoff_first{100};
constexpr Milliseconds restart_backoff_max{10'000};
constexpr unsigned exit_code_lost = 255;  // of a run whose end nobody saw

Result<void> make_passage(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && ::chmod(path.c_str(), 0711) != 0)
    error = std::error_code(errno, std::generic_category());
  if (error)
    return errno_failure(error.value(), fmt::format("cannot make the directory '{}'", path));
  return {};
}

struct Disk {
  std::string node;
  std::string volume;
  bool read_only = false;
};

/// The overlay first, then what is mounted, in order.
std::vector<Disk> disks_of(const container::ContainerSpecification& container) {
  std::vector<Disk> disks;
  if (!container.overlay.empty()) disks.push_back({.node = "overlay", .volume = container.overlay});
  for (std::size_t i = 0; i < container.mounts.size(); ++i) {
    disks.push_back({.node = fmt::format("mount-{}", i),
                     .volume = container.mounts[i].volume,
                     .read_only = container.mounts[i].read_only});
  }
  return disks;
}

machine::MachineMemory memory_of(const ContainerRecord& record) {
  machine::MachineSpecification alike;
  alike.name = "container " + record.specification.name;  // no machine's
  alike.memory = record.specification.memory;
  alike.cpus = static_cast<unsigned>(record.specification.cpus) + 1;
  return machine::memory_of(alike, machine::has_kvm());
}

}  // namespace

struct Containers::Container {
  Container(const Executor& executor, std::string name)
      : name(std::move(name)), mutex(executor), process_ended(executor) {}
  bool is_open() const { return connection && connection->is_open() && alive; }

  std::string name;
  AsyncMutex mutex;
  std::shared_ptr<KeeperConnection> connection;
  KeeperProcess process;
  std::uint64_t generation = 0;
  bool alive = false;
  bool heard = false;
  bool opening = false;
  bool starting = false;  // counts in admission, and has its volumes
  std::string last_end;   // of its keeper's process, "" where nobody knows
  Wakeup process_ended;
};

Containers::Containers(Executor executor, boost::asio::thread_pool& workers, ContainerPolicy policy,
                       Keepers& keepers, Machines& machines, EventLog& events)
    : executor_(std::move(executor)),
      workers_(workers),
      policy_(std::move(policy)),
      run_{policy_.run_dir},
      keepers_(keepers),
      machines_(machines),
      events_(events),
      store_(policy_.state_dir) {}

Containers::~Containers() = default;

void Containers::quit() {
  quitting_ = true;
  for (const auto& [name, container] : containers_) {
    if (container->connection) container->connection->close();
    container->process_ended.notify();
  }
}

std::shared_ptr<Containers::Container> Containers::container_of(const std::string& name) {
  auto& container = containers_[name];
  if (!container) container = std::make_shared<Container>(executor_, name);
  return container;
}

/// Whether one runs, or has ended without its keeper's knowledge.
bool Containers::has_qemu(const std::string& name) const {
  return machine::path_exists(run_.launch_file(name));
}

std::string Containers::disk_socket(const std::string& name, const std::string& node) const {
  return fmt::format("{}/d/{}", run_.container(name), node);
}

// --- The store, from this thread.

Async<std::vector<ContainerRecord>> Containers::list() {
  co_return co_await on_worker(workers_, [store = &store_] { return store->list(); });
}

Async<Result<ContainerRecord>> Containers::find(std::string reference) {
  co_return co_await on_worker(workers_,
                               [store = &store_, reference] { return store->find(reference); });
}

Async<Result<ContainerRecord>> Containers::create(container::ContainerSpecification wanted) {
  const std::string now = format_time(std::chrono::system_clock::now());
  co_return co_await on_worker(
      workers_, [store = &store_, wanted, now] { return store->create(wanted, now); });
}

Async<Result<void>> Containers::remove(std::string name) {
  const auto container = container_of(name);
  const auto lock = co_await container->mutex.lock();
  co_await await_ending(container);
  if (container->alive || has_qemu(name)) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' runs: stop it first, or use --force", name));
  }
  CO_TRY(co_await on_worker(workers_, [store = &store_, name] { return store->remove(name); }));
  std::error_code ignored;
  std::filesystem::remove_all(run_.container(name), ignored);
  events_.publish("container_deleted", {.container = name}, "");
  co_return Result<void>();
}

Async<std::string> Containers::user_of_image(std::string digest) {
  for (const ContainerRecord& record : co_await list())
    if (record.specification.image == digest) co_return record.specification.name;
  co_return std::string();
}

Async<std::vector<machine::MachineMemory>> Containers::running_memory() {
  std::vector<machine::MachineMemory> running;
  for (const ContainerRecord& record : co_await list())
    if (is_used(record.specification.name)) running.push_back(memory_of(record));
  co_return running;
}

/// Runs, or is about to.
bool Containers::is_used(const std::string& name) const {
  const auto found = containers_.find(name);
  return is_on(name) || (found != containers_.end() && found->second->starting);
}

Async<std::string> Containers::user_of_volume(std::string volume) {
  for (const ContainerRecord& record : co_await list()) {
    for (const Disk& disk : disks_of(record.specification)) {
      const std::string& name = record.specification.name;
      if (disk.volume != volume) continue;
      co_await settle(name);
      if (!record.specification.remove || co_await find(name)) co_return name;
    }
  }
  co_return std::string();
}

Async<std::string> Containers::runs_with(std::string volume) {
  for (const ContainerRecord& record : co_await list()) {
    if (!is_used(record.specification.name)) continue;
    for (const Disk& disk : disks_of(record.specification)) {
      if (disk.volume == volume)
        co_return fmt::format("the container '{}'", record.specification.name);
    }
  }
  co_return std::string();
}

// --- Keepers.

Result<std::shared_ptr<KeeperConnection>> Containers::connection(const std::string& name) const {
  const auto found = containers_.find(name);
  if (found == containers_.end() || !found->second->is_open()) {
    return failure(ErrorKind::precondition, fmt::format("the container '{}' does not run", name));
  }
  return found->second->connection;
}

bool Containers::is_on(const std::string& name) const { return connection(name).has_value(); }

Async<Result<Json>> Containers::call(std::string name, std::string method, Json params,
                                     CallOptions options) {
  const auto channel = CO_TRY(connection(name));
  co_return co_await channel->call(std::move(method), std::move(params), std::move(options));
}

Async<Result<void>> Containers::launch(std::shared_ptr<Container> container) {
  CO_TRY(make_passage(run_.containers()));
  CO_TRY(make_passage(run_.container(container->name)));
  container->opening = true;
  container->process =
      CO_TRY(launch_keeper({.program = policy_.program,
                            .arguments = {"--container", container->name, "--memory-dir",
                                          policy_.memory_dir, "--preload", policy_.preload},
                            .state_dir = policy_.state_dir,
                            .run_dir = policy_.run_dir,
                            .listen_fds = {},
                            .log_path = run_.keeper_log(container->name)}));
  container->alive = true;
  control::start(executor_, watch_process(container, ++container->generation));
  auto attached = co_await attach(container);
  container->opening = false;
  if (!attached && container->alive) (void)send_signal(container->process.pidfd, SIGTERM);
  co_return attached;
}

/// Connects to the keeper that runs, and waits until it answers. `disconnected` if none runs.
Async<Result<void>> Containers::attach(std::shared_ptr<Container> container) {
  const bool ours = container->alive;
  const auto deadline = SteadyClock::now() + launch_patience;
  for (Milliseconds retry = connect_retry_first; SteadyClock::now() < deadline;
       retry = std::min(retry * 2, connect_retry_max)) {
    if (ours && !container->alive) {
      co_return failure(keeper_failure(
          log_tail(run_.keeper_log(container->name), container->process.log_offset)));
    }
    auto connection = co_await KeeperConnection::connect(run_.control_socket(container->name));
    if (!connection && (!ours || connection.error().kind() != ErrorKind::disconnected))
      co_return failure(connection.error());
    // A socket of a keeper that was killed may take one more connection, and then hang up.
    auto hello =
        connection
            ? co_await (*connection)->call("hello", Json::object(), {.timeout = hello_timeout})
            : Result<Json>(failure(ErrorKind::disconnected, "nobody listens"));
    if (connection && !hello && !ours) co_return failure(std::move(hello).error());
    if (hello && hello->value("protocol", 0) != machine::control_protocol_version) {
      co_return failure(ErrorKind::unsupported,
                        fmt::format("its keeper (process {}) is of another version of berth",
                                    hello->value("pid", 0)));
    }
    const auto hear = [&](KeeperConnection& from) {
      from.hear(*hello, container->heard,
                [this, name = container->name](const std::string& event, std::string message) {
                  events_.publish(event, {.container = name}, std::move(message));
                });
    };
    if (hello && hello->value("over", false)) {
      hear(**connection);
      co_await await_end(container, end_patience);
      co_return failure(ErrorKind::precondition,
                        fmt::format("the container '{}' has ended", container->name));
    }
    if (hello && hello->value("open", false)) {
      if (!ours) {
        container->process.pid = CO_TRY((*connection)->peer_pid());
        container->process.pidfd = CO_TRY(open_pidfd(container->process.pid));
        container->alive = true;
        control::start(executor_, watch_process(container, ++container->generation));
      }
      if (!ours && !hello->value("on", false)) {
        // Of a daemon that died before it could say what to start, or of one that has ended.
        (void)co_await (*connection)->call("shutdown", Json::object(), {.timeout = hello_timeout});
        co_await await_end(container, end_patience);
        co_return failure(ErrorKind::disconnected, "its keeper had no container");
      }
      container->connection = std::move(*connection);
      hear(*container->connection);
      co_return Result<void>();
    }
    co_await container->process_ended.wait_for(retry);
  }
  co_return failure(
      ErrorKind::timed_out,
      fmt::format("the keeper of the container '{}' did not answer in time", container->name));
}

Async<void> Containers::watch_process(std::shared_ptr<Container> container,
                                      std::uint64_t generation) {
  co_await process_end(container->process.pidfd);
  if (container->generation != generation) co_return;
  container->last_end = reap(container->process.pidfd);
  container->alive = false;
  container->heard = false;
  if (container->connection) container->connection->close();
  container->process_ended.notify();
  if (!container->opening && !quitting_) co_await keep(container);
}

/// A keeper has ended: with its container, and then the disks are free; or from under it, and then
/// there is to be another.
Async<void> Containers::keep(std::shared_ptr<Container> container) {
  bool died = false;
  for (Milliseconds backoff = restart_backoff_first; !quitting_;
       backoff = std::min(backoff * 2, restart_backoff_max)) {
    {
      const auto lock = co_await container->mutex.lock();
      if (container->is_open() || quitting_) co_return;
      if (co_await release_ended(container->name)) co_return;
      if (!std::exchange(died, true)) {
        events_.publish("keeper_ended", {.container = container->name},
                        fmt::format("process {}{}{}", container->process.pid,
                                    container->last_end.empty() ? "" : ": ", container->last_end));
      }
      const auto launched = co_await launch(container);
      if (!launched && co_await release_ended(container->name)) co_return;
      events_.publish(launched ? "keeper_started" : "keeper_failed", {.container = container->name},
                      launched ? fmt::format("process {}", container->process.pid)
                               : launched.error().message());
      if (launched) co_return;
    }
    co_await container->process_ended.wait_for(backoff);
  }
}

Async<void> Containers::take_over() {
  if (const auto opened = co_await on_worker(workers_, [store = &store_] { return store->open(); });
      !opened)
    log_warning("containers: {}", opened.error().message());
  for (const ContainerRecord& record : co_await list()) {
    const auto container = container_of(record.specification.name);
    const auto lock = co_await container->mutex.lock();
    if (co_await attach(container)) {
      events_.publish("keeper_found", {.container = container->name},
                      fmt::format("process {}", container->process.pid));
      continue;
    }
    // Also of one that ended meanwhile: its keeper says how.
    if (has_qemu(container->name)) {
      const auto launched = co_await launch(container);
      if (launched) continue;
      if (!co_await release_ended(container->name))
        events_.publish("keeper_failed", {.container = container->name},
                        launched.error().message());
    } else {
      co_await note_lost_run(container->name);
      (void)co_await release_ended(container->name);
    }
  }
}

/// A keeper writes what ends a run before it takes away what says that there is one: where only the
/// latter is gone, the host went down, and its run directory with it.
Async<void> Containers::note_lost_run(std::string name) {
  const auto noted = co_await on_worker(workers_, [store = &store_, name]() -> Result<void> {
    container::ContainerState state = TRY(store->state(name));
    if (!state.running) return {};
    state.running = false;
    state.ended = true;
    state.exit_code = exit_code_lost;
    state.error = "the host went down while it ran";
    return store->save_state(name, state);
  });
  if (!noted) log_warning("{}", noted.error().message());
}

// --- Disks.

Async<Result<std::vector<Json>>> Containers::serve_disks(ContainerRecord record) {
  const std::string& name = record.specification.name;
  std::vector<Json> served;
  CO_TRY(make_passage(run_.container(name) + "/d"));
  for (const Disk& disk : disks_of(record.specification)) {
    for (const ContainerRecord& other : co_await list()) {
      if (other.specification.name == name || !is_used(other.specification.name)) continue;
      for (const Disk& theirs : disks_of(other.specification)) {
        if (theirs.volume != disk.volume || (theirs.read_only && disk.read_only)) continue;
        co_await settle(other.specification.name);
        if (!is_used(other.specification.name)) continue;
        co_return failure(ErrorKind::in_use,
                          fmt::format("the volume '{}' is in use by the container '{}'",
                                      disk.volume, other.specification.name));
      }
    }
    if (const std::string user = CO_TRY(co_await machines_.user_of(disk.volume)); !user.empty()) {
      co_return failure(ErrorKind::in_use, fmt::format("the volume '{}' is in use by the machine "
                                                       "'{}'",
                                                       disk.volume, user));
    }
    const std::string socket = disk_socket(name, disk.node);
    Json request = {{"unix", socket}, {"read_only", disk.read_only}};
    if (::geteuid() == 0) request["owner"] = record.uid;
    CO_TRY(co_await keepers_.serve(disk.volume, std::move(request)));
    served.push_back(machine::encode(machine::AttachedDisk{.node = disk.node,
                                                           .socket = socket,
                                                           .export_name = disk.volume,
                                                           .read_only = disk.read_only}));
  }
  co_return served;
}

Async<void> Containers::unserve_disks(ContainerRecord record) {
  for (const Disk& disk : disks_of(record.specification)) {
    const std::string socket = disk_socket(record.specification.name, disk.node);
    struct stat status{};
    if (::lstat(socket.c_str(), &status) != 0) continue;
    const auto ended = co_await keepers_.unserve(disk.volume, {{"unix", socket}});
    if (!ended && ended.error().kind() != ErrorKind::not_found) {
      log_warning("{}", ended.error().message());
      continue;
    }
    ::unlink(socket.c_str());
  }
}

/// Frees the disks of a container that has ended, and removes one that is to go with that. False:
/// it has not.
Async<bool> Containers::release_ended(std::string name) {
  if (has_qemu(name)) co_return false;
  const auto record = co_await find(name);
  if (!record) co_return true;
  co_await unserve_disks(*record);
  const auto state =
      co_await on_worker(workers_, [store = &store_, name] { return store->state(name); });
  if (record->specification.remove && state && state->ended && !state->running) {
    const auto removed =
        co_await on_worker(workers_, [store = &store_, name] { return store->remove(name); });
    if (removed) {
      std::error_code ignored;
      std::filesystem::remove_all(run_.container(name), ignored);
      events_.publish("container_deleted", {.container = name}, "it had ended");
    } else {
      log_warning("{}", removed.error().message());
    }
  }
  co_return true;
}

// --- Starting and ending.

Async<Result<void>> Containers::start(std::string name, Start how) {
  const auto container = container_of(name);
  const auto lock = co_await container->mutex.lock();
  if (quitting_) co_return failure(ErrorKind::disconnected, "the daemon is ending");
  co_await await_ending(container);
  if (container->alive || has_qemu(name)) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' runs already", name));
  }
  const ContainerRecord record = CO_TRY(co_await find(name));
  container->starting = true;
  auto done = co_await machines_.check_memory(memory_of(record));
  Result<std::vector<Json>> disks = std::vector<Json>();
  if (done) disks = co_await serve_disks(record);
  if (!disks) done = failure(disks.error());
  if (done) done = co_await launch(container);
  if (done) {
    const auto started = co_await container->connection->call("container.start",
                                                              {{"image", how.image},
                                                               {"kernel", how.kernel},
                                                               {"initrd", how.initrd},
                                                               {"disks", *disks},
                                                               {"hold", how.hold}},
                                                              {.timeout = start_timeout});
    if (!started) done = failure(started.error());
  }
  container->starting = false;
  if (!done) {
    if (container->alive) {
      container->opening = true;  // its end is ours
      (void)send_signal(container->process.pidfd, SIGTERM);
      co_await await_end(container, end_patience);
      container->opening = false;
    }
    if (has_qemu(name)) {
      control::start(executor_, keep(container));
    } else {
      (void)co_await release_ended(name);
    }
  }
  co_return done;
}

Async<void> Containers::settle(std::string name) { co_await await_ending(container_of(name)); }

/// One that has ended, or is about to, may still power off, or say goodbye to who is attached.
Async<void> Containers::await_ending(std::shared_ptr<Container> container) {
  if (!container->alive) co_return;
  if (container->is_open() && has_qemu(container->name)) {
    const auto info = co_await call(container->name, "container.info", Json::object(),
                                    {.timeout = hello_timeout});
    if (info && info->value("state", "") != "stopping" && info->value("state", "") != "stopped")
      co_return;
  }
  co_await await_end(container, end_patience);
}

Async<void> Containers::await_end(std::shared_ptr<Container> container, Milliseconds patience) {
  const auto deadline = SteadyClock::now() + patience;
  while (container->alive && SteadyClock::now() < deadline)
    co_await container->process_ended.wait_for(patience);
}

Async<Result<void>> Containers::stop(std::string name, Milliseconds timeout) {
  const auto channel = CO_TRY(connection(name));
  auto stopped = co_await channel->call("container.stop", {{"timeout_ms", timeout.count()}},
                                        {.timeout = timeout + stop_grace});
  // The keeper ends with its container, which may be before its answer comes.
  if (!stopped && stopped.error().kind() != ErrorKind::disconnected)
    co_return failure(stopped.error());
  co_await await_end(container_of(name), end_patience);
  co_return Result<void>();
}

Async<std::size_t> Containers::stop_all(bool force) {
  std::size_t ended = 0;
  for (const ContainerRecord& record : co_await list()) {
    const std::string& name = record.specification.name;
    if (!is_on(name)) continue;
    const Milliseconds patience =
        force ? Milliseconds(0) : std::chrono::seconds(record.specification.stop_timeout_s);
    const auto stopped = co_await stop(name, patience);
    if (stopped) {
      ++ended;
    } else {
      log_warning("container {}: {}", name, stopped.error().message());
    }
  }
  co_return ended;
}

Async<Containers::Status> Containers::status(std::string name) {
  Status status;
  const auto last =
      co_await on_worker(workers_, [store = &store_, name] { return store->state(name); });
  if (last) status.last = *last;
  if (is_on(name)) {
    auto info = co_await call(name, "container.info", Json::object(), {.timeout = hello_timeout});
    if (info && info->value("state", "") != "stopped") {
      status.state = info->value("state", "");
      status.info = std::move(*info);
      co_return status;
    }
    if (!info && info.error().kind() == ErrorKind::timed_out) {
      status.state = "unreachable";
      co_return status;
    }
  }
  status.state = has_qemu(name) ? "starting" : status.last.ended ? "exited" : "created";
  co_return status;
}

}  // namespace berth::control
