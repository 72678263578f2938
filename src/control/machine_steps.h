// The steps that making, deleting and converting a machine's checkpoint are made of, each of which
// can be done again after it was cut short. Internal to machine_checkpoints.cc, machine_steps.cc
// and the daemon's start; the machine's lock is held where nothing else is said.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"
#include "control/point_operations.h"
#include "control/spawn.h"
#include "machine/vm/machine_points.h"

namespace berth::control {

/// Whether a disk is part of the machine's checkpoints: those that its guest writes.
bool is_checkpointed(const machine::MachineDisk& disk);
std::vector<std::string> checkpointed_volumes(const std::vector<machine::MachineDisk>& disks);

/// A machine that nobody else works on until the lock goes, with nothing of its points half done.
struct TakenMachine {
  AsyncMutex::Lock lock;
  machine::MachineRecord record;
};
Async<Result<TakenMachine>> take_machine(Services& services, std::string machine);
/// When the daemon starts: the same for every machine, as far as it goes. Takes the locks itself.
Async<void> settle_machines(Services& services);

/// Calls `function` with the machine's MachinePoints, on a worker: they block, and sync.
template <typename Function>
Async<std::invoke_result_t<Function, const machine::MachinePoints&>> on_points(Services& services,
                                                                               std::string machine,
                                                                               Function function) {
  const machine::MachinePoints points({services.state_dir}, std::move(machine));
  co_return co_await on_worker(
      services.workers, [points, function = std::move(function)] { return function(points); });
}

/// already_exists where one of the volumes has a point of that kind and name.
Async<Result<void>> check_name_free(Services& services, std::vector<std::string> volumes,
                                    std::string name, PointKind kind);
/// in_use where a volume stands on one of its disks' checkpoints.
Async<Result<void>> check_unused(Services& services, machine::MachineCheckpoint checkpoint);

/// In all disks, where they have it; then the record.
Async<Result<void>> drop_checkpoint(Services& services, std::string machine,
                                    machine::MachineCheckpoint checkpoint);
Async<Result<void>> drop_refpoint(Services& services, std::string machine,
                                  machine::MachineRefpoint refpoint);
/// Of one whose record says `converting`.
Async<Result<void>> finish_conversion(Services& services, std::string machine,
                                      machine::MachineCheckpoint checkpoint);

nlohmann::json shown_checkpoint(const machine::MachineCheckpoint& checkpoint,
                                const std::string& machine, const std::string& current);
nlohmann::json shown_refpoint(const machine::MachineRefpoint& refpoint, const std::string& machine);

}  // namespace berth::control
