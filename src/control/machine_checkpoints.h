// Checkpoints and reference points of machines: a guest at rest, one cut over all of its disks, its
// memory where that is wanted; and what becomes of one that was cut short.
//
//   1. record the checkpoint as `making` (durable)
//   2. begin: freeze the guest's file systems, or copy its memory and stop its CPUs
//   3. one cut over the disks (group_cut.h)
//   4. end: thaw, or let it run on
//   5. record it as `whole`, with what really happened (durable)
//
// A record that is `making` when nobody makes it is completed as what it surely is, a `crash`
// checkpoint, where every disk has it, and taken away where not. On the control plane's thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"
#include "machine/vm/machine_points.h"

namespace berth::control {

struct CheckpointWish {
  std::string machine;
  std::string name;
  bool memory = false;
  bool quiesce = true;
  bool application = false;  // refuse anything less
  std::string durability;
  Milliseconds freeze_limit =
      std::chrono::duration_cast<Milliseconds>(machine::freeze_limit_default);
};

/// A MachineCheckpoint of the API. Nothing is left of one that fails.
Async<Result<nlohmann::json>> make_checkpoint(Services& services, CheckpointWish wish,
                                              std::shared_ptr<JobProgress> job);

/// All of a machine, as the API shows them; `making` ones are settled first.
Async<Result<nlohmann::json>> machine_checkpoints(Services& services, std::string machine);
Async<Result<nlohmann::json>> machine_refpoints(Services& services, std::string machine);

Async<Result<void>> delete_checkpoint(Services& services, std::string machine,
                                      std::string checkpoint);
Async<Result<void>> delete_refpoint(Services& services, std::string machine, std::string refpoint);
/// A MachineRefpoint of the API. One that was cut short goes on where it was.
Async<Result<nlohmann::json>> convert_checkpoint(Services& services, std::string machine,
                                                 std::string checkpoint, std::string refpoint);

struct RevertWish {
  std::string machine;
  std::string checkpoint;
  bool disks_only = false;
  bool force = false;  // a machine that runs is ended
};
Async<Result<void>> revert_machine(Services& services, RevertWish wish,
                                   std::shared_ptr<JobProgress> job);

/// Every disk's part to `directory`/DISK.raw; the sum of the disks' exports.
Async<Result<nlohmann::json>> export_checkpoint(Services& services, std::string machine,
                                                std::string checkpoint, std::string directory,
                                                std::string since,
                                                std::shared_ptr<JobProgress> job);

}  // namespace berth::control
