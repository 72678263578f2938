#include "control/containers.h"

#include <filesystem>
#include <utility>

#include <signal.h>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/process.h"
#include "base/units.h"
#include "container/microvm_command.h"
#include "control/container_creation.h"
#include "control/spawn.h"
#include "machine/host/accelerator.h"
#include "machine/vm/control_group.h"
#include "machine/vm/hibernation.h"
#include "machine/vm/machine_store.h"

namespace berth::control {
using Json = nlohmann::json;
using container::ContainerRecord;

namespace {

constexpr Milliseconds hello_timeout{10'000};
constexpr Milliseconds waiting_timeout{3'000};  // of a keeper that has nothing to do but answer
constexpr Milliseconds start_timeout{180'000};
constexpr int stop_attempts = 3;
constexpr Milliseconds stop_grace{60'000};    // beyond its own time
constexpr Milliseconds end_patience{30'000};  // of a keeper whose container has ended, and readers
constexpr unsigned exit_code_lost = 255;      // of a run whose end nobody saw

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
  const container::ContainerSpecification& is = record.specification;
  machine::MachineSpecification alike;
  alike.name = "container " + is.name;  // no machine's
  alike.memory = is.memory;
  alike.cpus = static_cast<unsigned>(is.cpus) + 1;
  machine::MachineMemory memory = machine::memory_of(alike, true);
  if (is.isolation == container::ContainerSpecification::Isolation::process) {
    memory.overhead = 0;  // its limit is all that it takes
    return memory;
  }
  if (!machine::has_kvm()) memory.overhead += container::microvm_tcg_code_bytes_max;
  memory.is_clone = !is.template_name.empty();
  if (memory.is_clone) memory.memory /= machine::clone_memory_parts;
  return memory;
}

}  // namespace

Containers::Containers(Executor executor, boost::asio::thread_pool& workers,
                       const GuestPolicy& policy, Keepers& keepers, Machines& machines,
                       EventLog& events)
    : workers_(workers),
      run_{policy.run_dir},
      machines_(machines),
      events_(events),
      store_(policy.state_dir),
      guests_(executor, policy,
              {.noun = "container",
               .is_off = "does not run",
               .directory = run_.containers(),
               .log_name = "keeper.log",
               .end_patience = end_patience,
               .subject = [](const std::string& name) { return EventSubject{.container = name}; }},
              keepers, events, [this](std::string name) { return release_ended(std::move(name)); }),
      ports_(executor),
      choosing_(std::move(executor)) {}

Containers::~Containers() = default;

// --- The store, from this thread.

Async<std::vector<ContainerRecord>> Containers::list() {
  co_return co_await on_worker(workers_, [store = &store_] { return store->list(); });
}

Async<Result<ContainerRecord>> Containers::find(std::string reference) {
  co_return co_await on_worker(workers_,
                               [store = &store_, reference] { return store->find(reference); });
}

Async<Result<ContainerRecord>> Containers::create(container::ContainerSpecification wanted,
                                                  std::optional<Identity> identity) {
  const std::string now = format_time(std::chrono::system_clock::now());
  const auto lock = co_await choosing_.lock();
  const std::set<std::uint32_t> taken = uids_of_waiting();
  co_return co_await on_worker(workers_, [store = &store_, wanted, now, taken, identity] {
    return store->create(wanted, now, taken, identity);
  });
}

Async<Result<void>> Containers::remove(std::string name) {
  const auto container = guests_.of(name);
  const auto lock = co_await container->mutex.lock();
  co_await await_ending(container);
  if (container->alive || guests_.has_qemu(name)) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' runs: stop it first, or use --force", name));
  }
  if (is_hibernated(name)) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("the container '{}' is hibernated: stop it first, or use --force", name));
  }
  // Whoever does that when it has ended may be waiting for us.
  co_await unserve_disks(CO_TRY(co_await find(name)));
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
  for (const auto& [place, record] : waiting_) running.push_back(memory_of(record));
  co_return running;
}

/// Runs, or is about to.
bool Containers::is_used(const std::string& name) const {
  return is_on(name) || starting_.contains(name);
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
    if (!has_disks(record.specification.name)) continue;
    for (const Disk& disk : disks_of(record.specification)) {
      if (disk.volume == volume)
        co_return fmt::format("the container '{}'", record.specification.name);
    }
  }
  co_return std::string();
}

// --- Keepers.

Async<Result<Json>> Containers::call(std::string name, std::string method, Json params,
                                     CallOptions options) {
  CO_TRY(co_await guests_.find_connection(name));
  co_return co_await guests_.call(std::move(name), std::move(method), std::move(params),
                                  std::move(options));
}

Async<void> Containers::take_over() {
  if (const auto opened = co_await on_worker(workers_, [store = &store_] { return store->open(); });
      !opened)
    log_warning("containers: {}", opened.error().message());
  for (const ContainerRecord& record : co_await list()) {
    const std::string& name = record.specification.name;
    const auto container = guests_.of(name);
    const auto lock = co_await container->mutex.lock();
    if (co_await guests_.take_over(container)) continue;
    co_await note_lost_run(name);
    (void)co_await release_ended(name);
  }
}

/// A keeper writes what ends a run before it takes away what says that there is one: where only the
/// latter is gone, the host went down, and its run directory with it.
Async<void> Containers::note_lost_run(std::string name) {
  const auto noted = co_await on_worker(workers_, [store = &store_, name]() -> Result<void> {
    container::ContainerState state = TRY(store->state(name));
    if (!state.running || machine::is_hibernated(store->directory(name))) return {};
    state.running = false;
    state.ended = true;
    state.exit_code = exit_code_lost;
    state.error = "the host went down while it ran";
    machine::remove_saved(store->directory(name));
    return store->save_state(name, state);
  });
  if (!noted) log_warning("{}", noted.error().message());
}

// --- Disks.

Async<Result<std::vector<Json>>> Containers::serve_disks(ContainerRecord record) {
  const std::string& name = record.specification.name;
  std::vector<Json> served;
  const std::vector<ContainerRecord> others = co_await list();
  for (const Disk& disk : disks_of(record.specification)) {
    for (const ContainerRecord& other : others) {
      if (other.specification.name == name || !has_disks(other.specification.name)) continue;
      for (const Disk& theirs : disks_of(other.specification)) {
        if (theirs.volume != disk.volume || (theirs.read_only && disk.read_only)) continue;
        co_await settle(other.specification.name);
        if (!has_disks(other.specification.name)) continue;
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
    const auto attached = CO_TRY(co_await guests_.serve(
        name,
        {.node = disk.node, .socket = {}, .export_name = disk.volume, .read_only = disk.read_only},
        record.uid));
    served.push_back(machine::encode(attached));
  }
  co_return served;
}

Async<void> Containers::unserve_disks(ContainerRecord record) {
  for (const Disk& disk : disks_of(record.specification))
    co_await guests_.unserve(record.specification.name, disk.node, disk.volume);
}

/// Frees the disks of a container that has ended, and removes one that is to go with that. False:
/// it has not.
Async<bool> Containers::release_ended(std::string name) {
  if (guests_.has_qemu(name)) co_return false;
  const auto record = co_await find(name);
  if (!record && waiting_.contains(name)) forget_waiting(name);
  if (!record) co_return true;
  // Of a daemon that is dead.
  if (!is_hibernated(name) && co_await has_hibernation(name)) co_await find_hibernated(name);
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
  const auto container = guests_.of(name);
  const auto lock = co_await container->mutex.lock();
  if (guests_.is_quitting()) co_return failure(ErrorKind::disconnected, "the daemon is ending");
  co_await await_ending(container);
  if (container->alive || guests_.has_qemu(name)) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' runs already", name));
  }
  if (is_hibernated(name) != how.wake) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' is {}", name,
                                  how.wake ? "not hibernated" : "hibernated: resume it"));
  }
  const ContainerRecord record = CO_TRY(co_await find(name));
  if (how.wake) {
    boost::asio::post(
        workers_, [directory = store_.directory(name)] { machine::read_ahead_saved(directory); });
  }
  starting_.insert(name);
  boost::asio::post(workers_, machine::ControlGroup::expect_entry);
  auto done = co_await machines_.check_memory(memory_of(record));
  Result<std::vector<Json>> disks = std::vector<Json>();
  if (done) disks = co_await serve_disks(record);
  if (!disks) done = failure(disks.error());
  if (done) done = co_await guests_.launch(container, ports_.descriptors(name));
  if (done) {
    Json request = {
        {"image", how.image},   {"kernel", how.kernel}, {"unpacked_kernel", how.unpacked_kernel},
        {"initrd", how.initrd}, {"agent", how.agent},   {"disks", *disks},
        {"hold", how.hold},     {"wake", how.wake}};
    if (!how.memory.empty()) request.update({{"memory", how.memory}, {"devices", how.devices}});
    const auto started = co_await container->connection->call("container.start", std::move(request),
                                                              {.timeout = start_timeout});
    if (!started) done = failure(started.error());
  }
  starting_.erase(name);
  if (done && how.wake) woke_up(name);
  if (!done) co_await look_whether_hibernated(name);
  if (!done && !co_await guests_.give_up(container)) (void)co_await release_ended(name);
  co_return done;
}

// --- Those that wait for a name.

std::set<std::uint32_t> Containers::uids_of_waiting() const {
  std::set<std::uint32_t> uids = uids_preparing_;
  for (const auto& [place, record] : waiting_) uids.insert(record.uid);
  return uids;
}

/// Its uid is in `uids_preparing_` from now on.
Async<Result<Containers::Identity>> Containers::reserve_identity() {
  const auto lock = co_await choosing_.lock();
  const std::set<std::uint32_t> taken = uids_of_waiting();
  const Identity identity = CO_TRY(co_await on_worker(
      workers_, [store = &store_, taken] { return store->new_identity(taken); }));
  uids_preparing_.insert(identity.uid);
  co_return identity;
}

Async<Result<Containers::Waiting>> Containers::prepare(container::ContainerSpecification alike,
                                                       Start how) {
  const Identity identity = CO_TRY(co_await reserve_identity());
  auto prepared = co_await prepare_as(identity, std::move(alike), std::move(how));
  uids_preparing_.erase(identity.uid);
  co_return prepared;
}

Async<Result<Containers::Waiting>> Containers::prepare_as(Identity identity,
                                                          container::ContainerSpecification alike,
                                                          Start how) {
  Waiting waiting{.place = fmt::format("{}{}", waiting_prefix,
                                       identity.id.to_string().substr(0, waiting_digits)),
                  .identity = identity};
  alike.name = waiting.place;
  alike.hostname = waiting.place;
  const ContainerRecord record{.id = identity.id,
                               .uid = identity.uid,
                               .created_at = format_time(std::chrono::system_clock::now()),
                               .specification = std::move(alike)};
  const auto container = guests_.of(waiting.place);
  const auto lock = co_await container->mutex.lock();
  if (guests_.is_quitting()) co_return failure(ErrorKind::disconnected, "the daemon is ending");
  CO_TRY(co_await machines_.check_memory(memory_of(record), false));
  waiting_[waiting.place] = record;
  auto done = co_await guests_.launch(container);
  if (done) {
    const auto prepared = co_await container->connection->call("container.prepare",
                                                               {{"image", how.image},
                                                                {"memory", how.memory},
                                                                {"devices", how.devices},
                                                                {"record", encode(record)}},
                                                               {.timeout = start_timeout});
    if (!prepared) done = failure(prepared.error());
  }
  if (done) co_return waiting;
  // What a keeper has left that was killed, the next one ends: see release_ended().
  if (!co_await guests_.give_up(container)) forget_waiting(waiting.place);
  co_return failure(std::move(done).error());
}

void Containers::forget_waiting(const std::string& place) {
  waiting_.erase(place);
  std::error_code ignored;
  std::filesystem::remove_all(run_.container(place), ignored);
  guests_.forget(place);
}

Async<Result<void>> Containers::assume(ContainerRecord record, Waiting waiting) {
  const std::string& name = record.specification.name;
  const auto container = guests_.of(name);
  const auto lock = co_await container->mutex.lock();
  Result<void> done = failure(ErrorKind::precondition, "it waits no more");
  {
    const auto from = guests_.of(waiting.place);
    const auto their_lock = co_await from->mutex.lock();
    if (container->alive || guests_.has_qemu(name)) {
      done = failure(ErrorKind::precondition, fmt::format("the container '{}' runs already", name));
    } else if (from->is_open()) {
      const auto answers = co_await from->connection->call("container.info", Json::object(),
                                                           {.timeout = waiting_timeout});
      if (answers && from->is_open()) done = guests_.hand_over(from, container);
    }
  }
  if (!done) {
    co_await discard(std::move(waiting));
    co_return done;
  }
  forget_waiting(waiting.place);
  starting_.insert(name);
  const auto assumed = co_await container->connection->call("container.assume", {{"name", name}},
                                                            {.timeout = start_timeout});
  starting_.erase(name);
  if (assumed) co_return Result<void>();
  if (!co_await guests_.give_up(container)) (void)co_await release_ended(name);
  co_return failure(assumed.error());
}

Async<void> Containers::discard(Waiting waiting) {
  const auto container = guests_.of(waiting.place);
  const auto lock = co_await container->mutex.lock();
  container->opening = true;  // its end is ours
  if (container->is_open()) {
    const auto asked = co_await container->connection->call("shutdown", Json::object(),
                                                            {.timeout = waiting_timeout});
    // There is nothing to lose: the next keeper ends what it leaves.
    if (!asked && asked.error().kind() == ErrorKind::timed_out)
      (void)send_signal(container->process.pidfd, SIGKILL);
  }
  co_await guests_.await_end(container);
  container->opening = false;
  if (!co_await guests_.give_up(container)) forget_waiting(waiting.place);
}

Async<void> Containers::discard_left_waiting() {
  for (const std::string& place : guests_.directories()) {
    if (!place.starts_with(waiting_prefix) || waiting_.contains(place)) continue;
    if (co_await find(place)) continue;  // somebody's that is called so
    {
      const auto container = guests_.of(place);
      const auto lock = co_await container->mutex.lock();
      (void)co_await guests_.take_over(container);
    }
    co_await discard({.place = place, .identity = {}});
  }
}

Async<void> Containers::settle(std::string name) { co_await await_ending(guests_.of(name)); }

/// One that has ended, or is about to, may still power off, or say goodbye to who is attached.
Async<void> Containers::await_ending(GuestKeepers::Guest container) {
  if (!container->alive) co_return;
  if (container->is_open() && guests_.has_qemu(container->name)) {
    const auto info = co_await guests_.call(container->name, "container.info", Json::object(),
                                            {.timeout = hello_timeout});
    if (info && info->value("state", "") != "stopping" && info->value("state", "") != "stopped")
      co_return;
  }
  co_await guests_.await_end(container);
}

Async<Result<void>> Containers::stop(std::string name, Milliseconds timeout) {
  auto channel = CO_TRY(co_await guests_.find_connection(name));
  for (int attempt = 0; attempt < stop_attempts; ++attempt) {
    const auto stopped = co_await channel->call("container.stop", {{"timeout_ms", timeout.count()}},
                                                {.timeout = timeout + stop_grace});
    // The keeper ends with its container, which may be before its answer comes.
    if (!stopped && stopped.error().kind() != ErrorKind::disconnected)
      co_return failure(stopped.error());
    if (stopped || !guests_.has_qemu(name)) break;
    // Or it has died, and the next one is asked.
    auto next = co_await guests_.find_connection(name);
    if (!next) break;
    channel = *std::move(next);
  }
  co_await guests_.await_end(guests_.of(name));
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
  // Again, of the next keeper, where one dies that is being asked.
  for (int attempt = 0; attempt < 2 && co_await guests_.find_connection(name); ++attempt) {
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
  if (is_hibernated(name)) {
    Status hibernated = co_await hibernated_status(name);
    hibernated.last = std::move(status.last);
    co_return hibernated;
  }
  status.state = guests_.has_qemu(name) ? "starting" : status.last.ended ? "exited" : "created";
  co_return status;
}

}  // namespace berth::control
