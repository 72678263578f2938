// The steps that making, deleting and converting a machine's checkpoint are made of, each of which
// can be done again after it was cut short. Internal to machine_checkpoints.cc and
// machine_steps.cc; the machine's lock is held.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"
#include "machine/vm/machine_points.h"

namespace berth::control {

/// Whether a disk is part of the machine's checkpoints: those that its guest writes.
bool is_checkpointed(const machine::MachineDisk& disk);
std::vector<std::string> checkpointed_volumes(const std::vector<machine::MachineDisk>& disks);
std::string disk_name(const machine::MachineDisk& disk);

/// Completes what an earlier daemon left half done, or takes it away.
Async<Result<void>> settle_checkpoints(Services& services, std::string machine);

/// already_exists where one of the volumes has a checkpoint, or a reference point, of that name.
Async<Result<void>> check_names_free(Services& services, std::vector<std::string> volumes,
                                     std::string name);
Async<Result<void>> check_refpoint_names_free(Services& services, std::vector<std::string> volumes,
                                              std::string name);
/// in_use where a volume stands on one of its disks' checkpoints.
Async<Result<void>> check_unused(Services& services, machine::MachineCheckpoint checkpoint);

/// In all disks, where they have it; then the record.
Async<Result<void>> drop_checkpoint(Services& services, std::string machine,
                                    machine::MachineCheckpoint checkpoint);
/// Of one whose record says `converting`.
Async<Result<void>> finish_conversion(Services& services, std::string machine,
                                      machine::MachineCheckpoint checkpoint);

nlohmann::json shown_checkpoint(const machine::MachineCheckpoint& checkpoint,
                                const std::string& machine, const std::string& current);
nlohmann::json shown_refpoint(const machine::MachineRefpoint& refpoint, const std::string& machine);

}  // namespace berth::control
