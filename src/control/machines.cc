#include "control/machines.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include <signal.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/boot_id.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "control/keeper_failure.h"
#include "control/keeper_process.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"
#include "machine/host/accelerator.h"
#include "machine/layout.h"
#include "machine/small_file.h"
#include "machine/vm/admission.h"
#include "machine/vm/host_ports.h"
#include "machine/vm/machine_points.h"
#include "machine/volume_directory.h"

namespace berth::control {
using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

namespace {

constexpr Milliseconds hello_timeout{10'000};
constexpr Milliseconds launch_patience{30'000};
constexpr Milliseconds start_timeout{180'000};  // includes loading a saved memory
constexpr Milliseconds stop_grace{60'000};      // beyond the guest's own time
constexpr Milliseconds end_patience{15'000};    // of a keeper whose machine has ended
constexpr Milliseconds connect_retry_first{2};
constexpr Milliseconds connect_retry_max{50};
constexpr Milliseconds restart_backoff_first{100};
constexpr Milliseconds restart_backoff_max{10'000};

std::string disk_directory(const std::string& run_dir, const std::string& machine) {
  return machine::RunLayout{run_dir}.machine(machine) + "/d";
}

std::string disk_socket(const std::string& run_dir, const std::string& machine,
                        const std::string& node) {
  return fmt::format("{}/{}", disk_directory(run_dir, machine), node);
}

Result<void> make_passage(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  // QEMU's user goes through, and sees nothing.
  if (!error && ::chmod(path.c_str(), 0711) != 0)
    error = std::error_code(errno, std::generic_category());
  if (error)
    return errno_failure(error.value(), fmt::format("cannot make the directory '{}'", path));
  return {};
}

}  // namespace

struct Machines::Machine {
  Machine(const Executor& executor, std::string name)
      : name(std::move(name)), mutex(executor), process_ended(executor) {}
  bool is_open() const { return connection && connection->is_open() && alive; }

  std::string name;
  AsyncMutex mutex;
  std::shared_ptr<KeeperConnection> connection;
  KeeperProcess process;
  std::uint64_t generation = 0;
  std::uint64_t start_number = 0;  // the order in which machines were started
  bool alive = false;
  bool heard = false;
  bool opening = false;
  std::string last_end;  // of its keeper's process, "" where nobody knows
  Wakeup process_ended;
};

Machines::Machines(Executor executor, boost::asio::thread_pool& workers, MachinePolicy policy,
                   Keepers& keepers, EventLog& events)
    : executor_(std::move(executor)),
      workers_(workers),
      policy_(std::move(policy)),
      keepers_(keepers),
      events_(events),
      store_(policy_.state_dir) {}

Machines::~Machines() = default;

void Machines::quit() {
  quitting_ = true;
  for (const auto& [name, machine] : machines_) {
    if (machine->connection) machine->connection->close();
    machine->process_ended.notify();
  }
}

std::shared_ptr<Machines::Machine> Machines::machine_of(const std::string& name) {
  auto& machine = machines_[name];
  if (!machine) machine = std::make_shared<Machine>(executor_, name);
  return machine;
}

std::string Machines::log_path(const std::string& name) const {
  return machine::RunLayout{policy_.run_dir}.machine(name) + "/log";
}

/// Whether one runs, or has ended without its keeper's knowledge.
bool Machines::has_qemu(const std::string& name) const {
  return machine::path_exists(machine::RunLayout{policy_.run_dir}.machine(name) + "/launch.json");
}

// --- The store, from this thread.

Async<Result<std::vector<machine::MachineRecord>>> Machines::list() {
  co_return co_await on_worker(workers_, [store = &store_] { return store->list(); });
}

Async<Result<machine::MachineRecord>> Machines::record(std::string name) {
  co_return co_await on_worker(workers_, [store = &store_, name] { return store->record(name); });
}

Async<Result<void>> Machines::save(machine::MachineRecord record) {
  co_return co_await on_worker(workers_, [store = &store_, record] { return store->save(record); });
}

Async<Result<machine::MachineState>> Machines::state(std::string name) {
  co_return co_await on_worker(workers_, [store = &store_, name] { return store->state(name); });
}

// --- Keepers.

Result<std::shared_ptr<KeeperConnection>> Machines::connection(const std::string& name) const {
  const auto found = machines_.find(name);
  if (found == machines_.end() || !found->second->is_open()) {
    return failure(ErrorKind::precondition, fmt::format("the machine '{}' is not running", name));
  }
  return found->second->connection;
}

bool Machines::is_on(const std::string& name) const { return connection(name).has_value(); }

Async<Result<Json>> Machines::call(std::string name, std::string method, Json params,
                                   CallOptions options) {
  const auto channel = CO_TRY(connection(name));
  co_return co_await channel->call(std::move(method), std::move(params), std::move(options));
}

Async<Result<void>> Machines::launch(std::shared_ptr<Machine> machine) {
  const machine::RunLayout layout{policy_.run_dir};
  CO_TRY(make_passage(layout.machines()));
  CO_TRY(make_passage(layout.machine(machine->name)));
  machine->opening = true;
  machine->process =
      CO_TRY(launch_keeper({.program = policy_.program,
                            .arguments = {"--machine", machine->name, "--memory-dir",
                                          policy_.memory_dir, "--preload", policy_.preload},
                            .state_dir = policy_.state_dir,
                            .run_dir = policy_.run_dir,
                            .listen_fds = {},
                            .log_path = log_path(machine->name)}));
  machine->alive = true;
  control::start(executor_, watch_process(machine, ++machine->generation));
  auto attached = co_await attach(machine);
  machine->opening = false;
  if (!attached && machine->alive) (void)send_signal(machine->process.pidfd, SIGTERM);
  co_return attached;
}

/// Connects to the keeper that runs, and waits until it answers. `disconnected` if none runs.
Async<Result<void>> Machines::attach(std::shared_ptr<Machine> machine) {
  const machine::RunLayout layout{policy_.run_dir};
  const bool ours = machine->alive;
  const auto deadline = SteadyClock::now() + launch_patience;
  for (Milliseconds retry = connect_retry_first; SteadyClock::now() < deadline;
       retry = std::min(retry * 2, connect_retry_max)) {
    if (ours && !machine->alive) {
      co_return failure(
          keeper_failure(log_tail(log_path(machine->name), machine->process.log_offset)));
    }
    auto connection =
        co_await KeeperConnection::connect(layout.machine_control_socket(machine->name));
    if (!connection && (!ours || connection.error().kind() != ErrorKind::disconnected))
      co_return failure(connection.error());
    if (connection) {
      auto hello =
          co_await (*connection)->call("hello", Json::object(), {.timeout = hello_timeout});
      if (!hello && !ours) co_return failure(std::move(hello).error());
      if (hello && hello->value("protocol", 0) != machine::control_protocol_version) {
        co_return failure(ErrorKind::unsupported,
                          fmt::format("its keeper (process {}) is of another version of berth",
                                      hello->value("pid", 0)));
      }
      if (hello && hello->value("over", false)) {
        hear(*machine, **connection, *hello);
        co_await await_end(machine, end_patience);
        co_return failure(ErrorKind::precondition,
                          fmt::format("the machine '{}' has ended", machine->name));
      }
      if (hello && hello->value("open", false)) {
        if (!ours) {
          machine->process.pid = CO_TRY((*connection)->peer_pid());
          machine->process.pidfd = CO_TRY(open_pidfd(machine->process.pid));
          machine->alive = true;
          control::start(executor_, watch_process(machine, ++machine->generation));
        }
        if (!ours && !hello->value("on", false)) {
          // Of a daemon that died before it could say what to start.
          (void)co_await (*connection)
              ->call("shutdown", Json::object(), {.timeout = hello_timeout});
          co_await await_end(machine, end_patience);
          co_return failure(ErrorKind::disconnected, "its keeper had no machine");
        }
        machine->connection = std::move(*connection);
        hear(*machine, *machine->connection, *hello);
        co_return Result<void>();
      }
    }
    co_await machine->process_ended.wait_for(retry);
  }
  co_return failure(
      ErrorKind::timed_out,
      fmt::format("the keeper of the machine '{}' did not answer in time", machine->name));
}

/// Passes on what the keeper reports.
void Machines::hear(Machine& machine, KeeperConnection& connection, const Json& hello) {
  connection.hear(hello, machine.heard,
                  [this, name = machine.name](const std::string& event, std::string message) {
                    events_.publish(event, {.machine = name}, std::move(message));
                  });
}

Async<void> Machines::watch_process(std::shared_ptr<Machine> machine, std::uint64_t generation) {
  co_await process_end(machine->process.pidfd);
  if (machine->generation != generation) co_return;
  machine->last_end = reap(machine->process.pidfd);
  machine->alive = false;
  machine->heard = false;
  if (machine->connection) machine->connection->close();
  machine->process_ended.notify();
  if (!machine->opening && !quitting_) co_await keep(machine);
}

/// A keeper has ended: with its machine, and then the disks are free; or from under it, and then
/// there is to be another.
Async<void> Machines::keep(std::shared_ptr<Machine> machine) {
  bool died = false;
  for (Milliseconds backoff = restart_backoff_first; !quitting_;
       backoff = std::min(backoff * 2, restart_backoff_max)) {
    {
      const auto lock = co_await machine->mutex.lock();
      if (machine->is_open() || quitting_) co_return;
      if (co_await release_ended(machine->name)) co_return;
      if (!std::exchange(died, true)) {
        events_.publish("keeper_ended", {.machine = machine->name},
                        fmt::format("process {}{}{}", machine->process.pid,
                                    machine->last_end.empty() ? "" : ": ", machine->last_end));
      }
      const auto launched = co_await launch(machine);
      if (!launched && co_await release_ended(machine->name)) co_return;
      events_.publish(
          launched ? "keeper_started" : "keeper_failed", {.machine = machine->name},
          launched ? fmt::format("process {}", machine->process.pid) : launched.error().message());
      if (launched) co_return;
    }
    co_await machine->process_ended.wait_for(backoff);
  }
}

Async<void> Machines::take_over() {
  if (const auto mended =
          co_await on_worker(workers_, [store = &store_] { return store->mend_links(); });
      !mended)
    log_warning("{}", mended.error().message());
  const auto records = co_await list();
  if (!records) {
    log_warning("{}", records.error().message());
    co_return;
  }
  for (const machine::MachineRecord& record : *records) {
    const auto machine = machine_of(record.specification.name);
    const auto lock = co_await machine->mutex.lock();
    if (co_await attach(machine)) {
      machine->start_number = ++starts_;
      events_.publish("keeper_found", {.machine = machine->name},
                      fmt::format("process {}", machine->process.pid));
      continue;
    }
    if (has_qemu(machine->name)) {
      // Also of one that ended meanwhile: its keeper says how.
      const auto launched = co_await launch(machine);
      if (!launched && !co_await release_ended(machine->name))
        events_.publish("keeper_failed", {.machine = machine->name}, launched.error().message());
      machine->start_number = ++starts_;
    } else {
      (void)co_await release_ended(machine->name);
    }
  }
  co_await autostart();
}

/// Machines that are to run when the host does: once after it has booted.
Async<void> Machines::autostart() {
  const std::string marker = policy_.state_dir + "/machines-started";
  const std::string boot = read_boot_id().value_or(std::string());
  const auto before =
      co_await on_worker(workers_, [marker] { return machine::read_small_file(marker); });
  if (before && *before == boot) co_return;
  (void)co_await on_worker(workers_,
                           [marker, boot] { return machine::write_small_file(marker, boot); });
  const auto records = co_await list();
  if (!records) co_return;
  for (const machine::MachineRecord& record : *records) {
    const std::string& name = record.specification.name;
    const auto state = co_await this->state(name);
    const bool was_running = state && state->running;  // and a power loss ended it
    if ((!record.specification.autostart && !was_running) || is_on(name)) continue;
    if (const auto started = co_await this->start(name, {}); !started) {
      events_.publish("machine_failed", {.machine = name}, started.error().message());
    }
  }
}

// --- Disks.

Async<Result<machine::AttachedDisk>> Machines::serve(std::string name, machine::MachineDisk disk,
                                                     std::uint32_t uid) {
  CO_TRY(make_passage(disk_directory(policy_.run_dir, name)));
  machine::AttachedDisk attached{.node = disk.node,
                                 .socket = disk_socket(policy_.run_dir, name, disk.node),
                                 .export_name = disk.volume,
                                 .read_only = disk.read_only,
                                 .kind = disk.kind,
                                 .slot = disk.slot};
  Json request = {{"unix", attached.socket}, {"read_only", disk.read_only}};
  if (::geteuid() == 0) request["owner"] = uid;
  CO_TRY(co_await keepers_.serve(disk.volume, std::move(request)));
  co_return attached;
}

Async<void> Machines::unserve(std::string name, machine::MachineDisk disk) {
  const std::string socket = disk_socket(policy_.run_dir, name, disk.node);
  struct stat status{};
  if (::lstat(socket.c_str(), &status) != 0) co_return;
  const auto ended = co_await keepers_.unserve(disk.volume, {{"unix", socket}});
  if (!ended && ended.error().kind() != ErrorKind::not_found) {
    log_warning("{}", ended.error().message());
    co_return;
  }
  ::unlink(socket.c_str());
}

Async<void> Machines::release_disks(std::string name) {
  const auto known = co_await record(name);
  if (!known) co_return;
  for (const machine::MachineDisk& disk : known->disks) co_await unserve(name, disk);
  co_await rest(name);
}

/// Frees the disks of a machine that is not to run, and whose QEMU is gone: one that nobody wants
/// any more, such as one that was being started by a keeper which died, is its next keeper's to
/// end.
Async<bool> Machines::release_ended(std::string name) {
  const auto state = co_await this->state(name);
  if ((state && state->running) || has_qemu(name)) co_return false;
  co_await release_disks(name);
  co_return true;
}

Async<void> Machines::rest(std::string name) {
  const auto known = co_await record(name);
  if (!known || is_on(name)) co_return;
  for (const machine::MachineDisk& disk : known->disks) {
    // Who works on it, serves it or stands on it needs it open.
    if (disk.own) (void)co_await keepers_.close(disk.volume);
  }
}

Async<Result<std::string>> Machines::user_of(std::string volume) {
  for (const machine::MachineRecord& record : CO_TRY(co_await list())) {
    for (const machine::MachineDisk& disk : record.disks) {
      if (disk.volume != volume) continue;
      if (disk.own || is_on(record.specification.name)) co_return record.specification.name;
    }
  }
  co_return std::string();
}

/// A disk that is written has one user.
Async<Result<void>> Machines::check_disks_free(machine::MachineRecord record) {
  for (const machine::MachineDisk& disk : record.disks) {
    if (neighbours_ == nullptr) break;
    const std::string user = co_await neighbours_->runs_with(disk.volume);
    if (user.empty()) continue;
    co_return failure(ErrorKind::in_use, fmt::format("the disk '{}' (volume '{}') is in use by {}",
                                                     disk.node, disk.volume, user));
  }
  for (const machine::MachineRecord& other : CO_TRY(co_await list())) {
    const std::string& name = other.specification.name;
    if (name == record.specification.name || !is_on(name)) continue;
    for (const machine::MachineDisk& theirs : other.disks) {
      for (const machine::MachineDisk& ours : record.disks) {
        if (ours.volume != theirs.volume || (ours.read_only && theirs.read_only)) continue;
        co_return failure(ErrorKind::in_use,
                          fmt::format("the disk '{}' (volume '{}') is in use by the machine '{}'",
                                      ours.node, ours.volume, name));
      }
    }
  }
  co_return Result<void>();
}

Async<Result<void>> Machines::check_memory(machine::MachineMemory one_more) {
  struct sysinfo host{};
  struct statvfs space{};
  ::sysinfo(&host);
  if (::statvfs(policy_.memory_dir.c_str(), &space) != 0)
    co_return errno_failure(
        errno, fmt::format("cannot look at the memory directory '{}'", policy_.memory_dir));
  const bool kvm = machine::has_kvm();
  machine::MemoryAdmission admission{
      .ram = std::uint64_t{host.totalram} * host.mem_unit,
      .swap = std::uint64_t{host.totalswap} * host.mem_unit,
      .memory_dir_size = std::uint64_t{space.f_blocks} * space.f_frsize,
      .memory_dir_free = std::uint64_t{space.f_bavail} * space.f_frsize,
      .running = {}};
  for (const machine::MachineRecord& other : CO_TRY(co_await list())) {
    if (!is_on(other.specification.name)) continue;
    admission.running.push_back(machine::memory_of(other.specification, kvm));
  }
  if (neighbours_ != nullptr) {
    for (machine::MachineMemory& other : co_await neighbours_->running_memory())
      admission.running.push_back(std::move(other));
  }
  co_return machine::check_admission(admission, one_more);
}

// --- Starting and ending.

Async<AsyncMutex::Lock> Machines::lock(std::string name) {
  co_return co_await machine_of(name)->mutex.lock();
}

Async<Result<void>> Machines::start(std::string name, Start how) {
  CO_TRY(co_await record(name));
  const auto machine = machine_of(name);
  const auto lock = co_await machine->mutex.lock();
  co_return co_await start_locked(machine, std::move(how));
}

Async<Result<void>> Machines::start_locked(std::shared_ptr<Machine> machine, Start how) {
  const std::string name = machine->name;
  if (quitting_) co_return failure(ErrorKind::disconnected, "the daemon is ending");
  if (machine->is_open()) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' is running already", name));
  }
  // One whose machine has ended says goodbye, and has the machine until then.
  if (machine->alive) co_await await_end(machine, end_patience);
  const machine::MachineRecord record = CO_TRY(co_await this->record(name));
  const std::string reverting = machine::MachinePoints({policy_.state_dir}, name).reverting();
  if (!reverting.empty()) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("a revert of the machine '{}' to the checkpoint '{}' was cut short: do it "
                    "again first",
                    name, reverting));
  }
  CO_TRY(co_await check_disks_free(record));
  CO_TRY(co_await check_memory(machine::memory_of(record.specification, machine::has_kvm())));
  CO_TRY(machine::check_host_ports(record.specification));

  Json disks = Json::array();
  Result<void> done;
  for (const machine::MachineDisk& disk : record.disks) {
    auto served = co_await serve(name, disk, record.uid);
    if (!served) {
      done = failure(std::move(served).error().with_context(
          fmt::format("cannot start the machine '{}'", name)));
      break;
    }
    disks.push_back(machine::encode(*served));
  }
  if (done) done = co_await launch(machine);
  fault_point("resuming.keeper-there");
  if (done) {
    Json request = {{"disks", std::move(disks)}, {"suspended", how.suspended}};
    if (!how.memory.empty()) {
      request.update({{"memory", how.memory},
                      {"devices", how.devices},
                      {"qemu", how.qemu},
                      {"accelerator", how.accelerator}});
    }
    const auto started = co_await machine->connection->call("machine.start", std::move(request),
                                                            {.timeout = start_timeout});
    if (!started) done = failure(started.error());
    fault_point("resuming.started");
  }
  if (!done) {
    if (machine->alive) {
      machine->opening = true;  // its end is ours
      (void)send_signal(machine->process.pidfd, SIGTERM);
      co_await await_end(machine, end_patience);
      machine->opening = false;
    }
    // A QEMU that its keeper has left does not end without its disks: the next keeper comes first.
    if (has_qemu(name)) {
      control::start(executor_, keep(machine));
    } else {
      co_await release_disks(name);
    }
    co_return done;
  }
  machine->start_number = ++starts_;
  events_.publish("machine_started", {.machine = name}, "");
  co_return Result<void>();
}

Async<void> Machines::await_end(std::shared_ptr<Machine> machine, Milliseconds patience) {
  const auto deadline = SteadyClock::now() + patience;
  while (machine->alive && SteadyClock::now() < deadline)
    co_await machine->process_ended.wait_for(patience);
}

Async<Result<void>> Machines::stop(std::string name, Milliseconds timeout) {
  CO_TRY(co_await record(name));
  const auto machine = machine_of(name);
  const auto channel = CO_TRY(connection(name));
  auto stopped = co_await channel->call("machine.stop", {{"timeout_ms", timeout.count()}},
                                        {.timeout = timeout + stop_grace});
  // The keeper ends with its machine, which may be before its answer comes.
  if (!stopped && stopped.error().kind() != ErrorKind::disconnected)
    co_return failure(stopped.error());
  co_await await_end(machine, end_patience);
  const auto lock = co_await machine->mutex.lock();
  const auto state = CO_TRY(co_await this->state(name));
  if (!machine->is_open() && !state.running) {
    co_await release_disks(name);
    co_return Result<void>();
  }
  co_return failure(ErrorKind::timed_out, fmt::format("the machine '{}' does not end", name));
}

Async<std::size_t> Machines::stop_all(bool force) {
  std::vector<std::shared_ptr<Machine>> running;
  for (const auto& [name, machine] : machines_)
    if (machine->is_open()) running.push_back(machine);
  std::ranges::sort(running, std::greater(),
                    [](const auto& machine) { return machine->start_number; });
  std::size_t ended = 0;
  for (const auto& machine : running) {
    const auto known = co_await record(machine->name);
    const Milliseconds patience = force || !known
                                      ? Milliseconds(0)
                                      : std::chrono::seconds(known->specification.stop_timeout_s);
    const auto stopped = co_await stop(machine->name, patience);
    if (stopped) {
      ++ended;
    } else {
      log_warning("machine {}: {}", machine->name, stopped.error().message());
    }
  }
  co_return ended;
}

// --- What there is to say.

Async<Result<Json>> Machines::info(machine::MachineRecord known, bool with_addresses) {
  const std::string name = known.specification.name;
  const machine::MachineState state = CO_TRY(co_await this->state(name));
  Json json = {{"state", state.crashed ? "crashed" : "stopped"}};
  if (is_on(name)) {
    auto running = co_await call(name, "machine.info", {{"addresses", with_addresses}},
                                 {.timeout = hello_timeout});
    if (running) json = std::move(*running);
    if (!running && running.error().kind() != ErrorKind::disconnected)
      json["state"] = "unreachable";
  } else if (state.running) {
    json["state"] = "starting";  // it has no keeper for the moment
  }
  json["record"] = machine::encode(known);
  json["last_end"] = state.last_end;
  json["last_end_at"] = state.last_end_at;
  co_return json;
}

}  // namespace berth::control
