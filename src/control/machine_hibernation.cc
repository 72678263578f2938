// Machines: those that are suspended, above all those that are hibernated, which have neither
// keeper nor QEMU. What they keep is their place: a name, a directory, their disks as they are.

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/units.h"
#include "control/machines.h"
#include "control/spawn.h"
#include "machine/vm/machine_hibernation_record.h"

namespace berth::control {
using Json = nlohmann::json;
using machine::PauseLevel;

namespace {

constexpr Milliseconds settle_patience{60'000};  // QEMU starts, and loads; emulated, on a busy host
constexpr Milliseconds settle_poll{20};
constexpr Milliseconds suspend_timeout{600'000};  // memory goes to a disk

Json suspend_request(PauseLevel level) { return {{"level", to_string(level)}}; }

}  // namespace

std::string Machines::directory(const std::string& name) const {
  return machine::StateLayout{guests_.policy().state_dir}.machine(name);
}

bool Machines::is_hibernated(const std::string& name) const {
  return machine::is_hibernated(directory(name));
}

Result<void> Machines::check_not_hibernated(const std::string& name) const {
  if (!is_hibernated(name)) return {};
  return failure(ErrorKind::precondition,
                 fmt::format("the machine '{}' is hibernated: resume it first, or stop it", name));
}

Async<Result<void>> Machines::check_disk_not_hibernated(std::string volume) {
  for (const machine::MachineRecord& record : CO_TRY(co_await list())) {
    const std::string& name = record.specification.name;
    if (!is_hibernated(name) ||
        std::ranges::find(record.disks, volume, &machine::MachineDisk::volume) ==
            record.disks.end())
      continue;
    co_return failure(ErrorKind::in_use,
                      fmt::format("the volume '{}' is a disk of the machine '{}', which is "
                                  "hibernated: resume that first, or stop it",
                                  volume, name));
  }
  co_return Result<void>();
}

Async<Result<void>> Machines::suspend(std::string name, PauseLevel level) {
  if (is_hibernated(name)) {
    if (level == PauseLevel::hibernated) co_return Result<void>();
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' is hibernated already: resume it first", name));
  }
  if (level == PauseLevel::hibernated) co_return co_await hibernate(std::move(name));
  CO_TRY(co_await call(std::move(name), "machine.suspend", suspend_request(level),
                       {.timeout = suspend_timeout}));
  co_return Result<void>();
}

Async<Result<void>> Machines::hibernate(std::string name) {
  CO_TRY(co_await guests_.find_connection(name));
  const auto machine = guests_.of(name);
  Result<void> done;
  {
    const auto lock = co_await machine->mutex.lock();
    const auto suspended =
        co_await call(name, "machine.suspend", suspend_request(PauseLevel::hibernated),
                      {.timeout = suspend_timeout});
    if (!suspended) done = failure(suspended.error());
    // The keeper ends with it, which may be before its answer comes.
    if (done || done.error().kind() == ErrorKind::disconnected) co_await guests_.await_end(machine);
  }
  // Or it has died, and the next one says what became of it.
  if (!done && done.error().kind() == ErrorKind::disconnected)
    (void)co_await guests_.find_connection(name);
  const auto lock = co_await machine->mutex.lock();
  if (is_hibernated(name) && !is_on(name)) {
    co_await release_disks(name);
    co_return Result<void>();
  }
  if (done) co_return failure(ErrorKind::internal, fmt::format("'{}' was not saved", name));
  co_return done;
}

/// With its lock held. What was saved decides: a keeper that is still there is about to end, or to
/// have it go on, as somebody had asked an earlier daemon; a QEMU that a dead one has left is ended
/// by the next.
Async<void> Machines::end_saved(GuestKeepers::Guest machine) {
  const auto deadline = std::chrono::steady_clock::now() + settle_patience;
  while (machine->alive && is_hibernated(machine->name) &&
         std::chrono::steady_clock::now() < deadline)
    co_await machine->process_ended.wait_for(settle_poll);
  if (!machine->alive && guests_.has_qemu(machine->name)) (void)co_await guests_.launch(machine);
}

Async<Result<void>> Machines::discard_hibernated(std::string name) {
  const auto machine = guests_.of(name);
  const auto lock = co_await machine->mutex.lock();
  if (is_hibernated(name)) co_await end_saved(machine);
  if (is_on(name) || !is_hibernated(name)) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("somebody has resumed the machine '{}'", name));
  }
  machine::MachineState state = CO_TRY(co_await this->state(name));
  state.running = false;
  state.suspended = false;
  state.crashed = false;
  state.clean = false;
  state.last_end = "ended by force, as asked: it was hibernated";
  state.last_end_at = format_time(std::chrono::system_clock::now());
  CO_TRY(co_await on_worker(
      workers_, [store = &store_, name, state, directory = directory(name)]() -> Result<void> {
        TRY(machine::discard_hibernation(directory));
        return store->save_state(name, state);
      }));
  events_.publish("machine_stopped", {.machine = name}, state.last_end);
  co_await release_disks(name);
  co_return Result<void>();
}

Async<Json> Machines::hibernated_info(std::string name) {
  const auto record = co_await on_worker(workers_, [directory = directory(name)] {
    return machine::read_machine_hibernation(directory);
  });
  if (!record) log_warning("{}", record.error().message());
  co_return Json{{"state", "hibernated"},
                 {"pause", record ? machine::encode(record->saved.pause) : Json()}};
}

}  // namespace berth::control
