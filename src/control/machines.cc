#include "control/machines.h"

#include <algorithm>
#include <utility>

#include <sys/statvfs.h>
#include <sys/sysinfo.h>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/boot_id.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "control/spawn.h"
#include "machine/host/accelerator.h"
#include "machine/host/available_memory.h"
#include "machine/layout.h"
#include "machine/small_file.h"
#include "machine/vm/admission.h"
#include "machine/vm/hibernation.h"
#include "machine/vm/host_ports.h"
#include "machine/vm/machine_points.h"

namespace berth::control {
using Json = nlohmann::json;

namespace {

constexpr Milliseconds hello_timeout{10'000};
constexpr Milliseconds start_timeout{180'000};  // includes loading a saved memory
constexpr Milliseconds stop_grace{60'000};      // beyond the guest's own time
constexpr Milliseconds end_patience{15'000};    // of a keeper whose machine has ended

}  // namespace

Machines::Machines(Executor executor, boost::asio::thread_pool& workers, const GuestPolicy& policy,
                   Keepers& keepers, EventLog& events)
    : workers_(workers),
      keepers_(keepers),
      events_(events),
      store_(policy.state_dir),
      guests_(std::move(executor), policy,
              {.noun = "machine",
               .is_off = "is not running",
               .directory = machine::RunLayout{policy.run_dir}.machines(),
               .log_name = "log",
               .end_patience = end_patience,
               .subject = [](const std::string& name) { return EventSubject{.machine = name}; }},
              keepers, events,
              [this](std::string name) { return release_ended(std::move(name)); }) {}

Machines::~Machines() = default;

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
  return guests_.connection(name);
}

Async<Result<Json>> Machines::call(std::string name, std::string method, Json params,
                                   CallOptions options) {
  return guests_.call(std::move(name), std::move(method), std::move(params), std::move(options));
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
    const std::string& name = record.specification.name;
    const auto machine = guests_.of(name);
    const auto lock = co_await machine->mutex.lock();
    if (co_await guests_.take_over(machine)) {
      start_numbers_[name] = ++starts_;
    } else {
      (void)co_await release_ended(name);
    }
  }
  co_await autostart();
}

/// Machines that are to run when the host does: once after it has booted.
Async<void> Machines::autostart() {
  const std::string marker = guests_.policy().state_dir + "/machines-started";
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
    if ((!record.specification.autostart && !was_running) || has_disks(name)) continue;
    if (const auto started = co_await this->start(name, {}); !started) {
      events_.publish("machine_failed", {.machine = name}, started.error().message());
    }
  }
}

// --- Disks.

Async<Result<machine::AttachedDisk>> Machines::serve(std::string name, machine::MachineDisk disk,
                                                     std::uint32_t uid) {
  co_return co_await guests_.serve(std::move(name),
                                   {.node = disk.node,
                                    .socket = {},
                                    .export_name = disk.volume,
                                    .read_only = disk.read_only,
                                    .kind = disk.kind,
                                    .slot = disk.slot},
                                   uid);
}

Async<void> Machines::unserve(std::string name, machine::MachineDisk disk) {
  co_await guests_.unserve(std::move(name), disk.node, disk.volume);
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
  if ((state && state->running && !is_hibernated(name)) || guests_.has_qemu(name)) co_return false;
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
      if (disk.own || has_disks(record.specification.name)) co_return record.specification.name;
    }
  }
  co_return std::string();
}

/// A disk that is written has one user.
Async<Result<void>> Machines::check_disks_free(machine::MachineRecord record) {
  for (const machine::MachineDisk& disk : record.disks) {
    for (MachineNeighbours* neighbours : neighbours_) {
      const std::string user = co_await neighbours->runs_with(disk.volume);
      if (user.empty()) continue;
      co_return failure(
          ErrorKind::in_use,
          fmt::format("the disk '{}' (volume '{}') is in use by {}", disk.node, disk.volume, user));
    }
  }
  for (const machine::MachineRecord& other : CO_TRY(co_await list())) {
    const std::string& name = other.specification.name;
    if (name == record.specification.name || !has_disks(name)) continue;
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

Async<Result<void>> Machines::check_memory(machine::MachineMemory one_more, bool needs) {
  auto fits = co_await look_at_memory(one_more);
  if (fits || !needs) co_return fits;
  bool yielded = false;
  for (MachineNeighbours* neighbours : neighbours_)
    if (co_await neighbours->yield_memory()) yielded = true;
  if (yielded) fits = co_await look_at_memory(one_more);
  co_return fits;
}

Async<Result<void>> Machines::look_at_memory(machine::MachineMemory one_more) {
  struct sysinfo host{};
  struct statvfs space{};
  ::sysinfo(&host);
  if (::statvfs(guests_.policy().memory_dir.c_str(), &space) != 0)
    co_return errno_failure(errno, fmt::format("cannot look at the memory directory '{}'",
                                               guests_.policy().memory_dir));
  const bool kvm = machine::has_kvm();
  machine::MemoryAdmission admission{
      .ram = std::uint64_t{host.totalram} * host.mem_unit,
      .swap = std::uint64_t{host.totalswap} * host.mem_unit,
      .available = machine::available_memory() + std::uint64_t{host.freeswap} * host.mem_unit,
      .memory_dir_size = std::uint64_t{space.f_blocks} * space.f_frsize,
      .memory_dir_free = std::uint64_t{space.f_bavail} * space.f_frsize,
      .running = {}};
  for (const machine::MachineRecord& other : CO_TRY(co_await list())) {
    if (!is_on(other.specification.name)) continue;
    admission.running.push_back(machine::memory_of(other.specification, kvm));
  }
  for (MachineNeighbours* neighbours : neighbours_) {
    for (machine::MachineMemory& other : co_await neighbours->running_memory())
      admission.running.push_back(std::move(other));
  }
  co_return machine::check_admission(admission, one_more);
}

// --- Starting and ending.

Async<AsyncMutex::Lock> Machines::lock(std::string name) {
  co_return co_await guests_.of(name)->mutex.lock();
}

Async<Result<void>> Machines::start(std::string name, Start how) {
  CO_TRY(co_await record(name));
  const auto machine = guests_.of(name);
  const auto lock = co_await machine->mutex.lock();
  co_return co_await start_locked(machine, std::move(how));
}

Async<Result<void>> Machines::start_locked(GuestKeepers::Guest machine, Start how) {
  const std::string name = machine->name;
  if (guests_.is_quitting()) co_return failure(ErrorKind::disconnected, "the daemon is ending");
  const bool wake = is_hibernated(name);
  if (wake) {
    co_await end_saved(machine);
    boost::asio::post(workers_, [of = directory(name)] { machine::read_ahead_saved(of); });
  }
  if (machine->is_open()) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' is running already", name));
  }
  // One whose machine has ended says goodbye, and has the machine until then.
  if (machine->alive) co_await guests_.await_end(machine);
  const machine::MachineRecord record = CO_TRY(co_await this->record(name));
  const std::string reverting =
      machine::MachinePoints({guests_.policy().state_dir}, name).reverting();
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
  if (done) done = co_await guests_.launch(machine);
  fault_point("resuming.keeper-there");
  if (done) {
    Json request = {{"disks", std::move(disks)}, {"suspended", how.suspended}, {"wake", wake}};
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
    // A QEMU that its keeper has left does not end without its disks: the next keeper comes first.
    if (!co_await guests_.give_up(machine)) co_await release_disks(name);
    co_return done;
  }
  start_numbers_[name] = ++starts_;
  events_.publish(wake ? "machine_resumed" : "machine_started", {.machine = name}, "");
  co_return Result<void>();
}

Async<Result<void>> Machines::stop(std::string name, Milliseconds timeout) {
  CO_TRY(co_await record(name));
  if (is_hibernated(name)) {
    if (timeout == Milliseconds(0)) co_return co_await discard_hibernated(name);
    CO_TRY(co_await start(name, {}));
  }
  const auto machine = guests_.of(name);
  const auto channel = CO_TRY(connection(name));
  auto stopped = co_await channel->call("machine.stop", {{"timeout_ms", timeout.count()}},
                                        {.timeout = timeout + stop_grace});
  // The keeper ends with its machine, which may be before its answer comes.
  if (!stopped && stopped.error().kind() != ErrorKind::disconnected)
    co_return failure(stopped.error());
  co_await guests_.await_end(machine);
  const auto lock = co_await machine->mutex.lock();
  const auto state = CO_TRY(co_await this->state(name));
  if (!machine->is_open() && !state.running) {
    co_await release_disks(name);
    co_return Result<void>();
  }
  co_return failure(ErrorKind::timed_out, fmt::format("the machine '{}' does not end", name));
}

Async<std::size_t> Machines::stop_all(bool force) {
  std::vector<GuestKeepers::Guest> running;
  for (const auto& [name, machine] : guests_.all())
    if (machine->is_open()) running.push_back(machine);
  std::ranges::sort(running, std::greater(),
                    [this](const auto& machine) { return start_numbers_[machine->name]; });
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
  if (is_hibernated(name)) {
    json = co_await hibernated_info(name);
  } else if (is_on(name)) {
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
