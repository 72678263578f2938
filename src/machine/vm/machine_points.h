// What a machine keeps of its checkpoints and reference points, beside its disks, so that it
// travels with them:
//
//   NAME/checkpoints/CHECKPOINT/checkpoint.json     MachineCheckpoint
//   NAME/checkpoints/CHECKPOINT/memory, devices     where it has memory (memory_save.h)
//   NAME/refpoints/REFPOINT.json                    MachineRefpoint
//   NAME/current                                    the checkpoint that its life goes on from
//   NAME/reverting                                  a revert to this checkpoint is not complete
//
// The disks' part of a checkpoint is in the volumes, under the same name. Every record is written
// whole and durably. Blocking.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "machine/vm/machine_store.h"
#include "machine/vm/quiescence.h"

namespace berth::machine {

/// What a saved memory needs to go on: all of it has to be the same.
struct MachineStamp {
  std::string qemu;  // version
  std::string machine_type;
  std::string cpu_model;
  std::uint64_t memory = 0;  // bytes
  unsigned cpus = 0;
  std::string accelerator;
  friend bool operator==(const MachineStamp&, const MachineStamp&) = default;
};

struct MachineCheckpoint {
  /// Anything but `whole` is rolled forward, or back, by whoever finds it.
  enum class Phase : std::uint8_t { making, whole, converting, deleting };
  std::string name;
  Phase phase = Phase::making;
  std::string parent;  // the checkpoint before it; "" for none
  std::string created_at;
  Consistency consistency = Consistency::crash;
  std::string reason;  // why it is not more consistent
  bool memory = false;
  bool suspended = false;  // how the machine goes on from its memory
  MachineStamp stamp;      // of its memory
  std::vector<MachineDisk> disks;
  std::int64_t frozen_us = 0;   // how long the guest's file systems were frozen
  std::int64_t stopped_us = 0;  // how long its virtual CPUs stood still
  std::string refpoint;         // with `converting`: what it becomes
};

struct MachineRefpointPart {
  std::string disk;
  std::string volume;
  std::uint64_t epoch = 0;
  Id128 nonce;
};

struct MachineRefpoint {
  std::string name;
  std::string created_at;  // of the cut
  Consistency consistency = Consistency::crash;
  std::vector<MachineRefpointPart> parts;
  bool deleting = false;  // whoever finds it goes on with that
};

class MachinePoints {
 public:
  MachinePoints(StateLayout state, std::string machine);

  std::string checkpoint_directory(const std::string& name) const;
  Result<std::vector<MachineCheckpoint>> checkpoints() const;           // by time
  Result<MachineCheckpoint> checkpoint(const std::string& name) const;  // not_found
  /// Makes its directory if need be.
  Result<void> save(const MachineCheckpoint& checkpoint) const;
  /// Takes it out of the tree: its children become its parent's.
  Result<void> remove_checkpoint(const std::string& name) const;
  /// What a dead process has left of making or removing one: a directory without a record.
  Result<void> clear_leftovers() const;

  Result<std::vector<MachineRefpoint>> refpoints() const;
  Result<MachineRefpoint> refpoint(const std::string& name) const;  // not_found
  Result<void> save(const MachineRefpoint& refpoint) const;
  Result<void> remove_refpoint(const std::string& name) const;

  std::string current() const;  // "" for none
  Result<void> set_current(const std::string& checkpoint) const;
  std::string reverting() const;  // "" for none
  Result<void> set_reverting(const std::string& checkpoint) const;

 private:
  std::string path_;
};

}  // namespace berth::machine
