// A machine's directory that goes to another host, and one that has come (DESIGN §5: everything
// that reference points need travels with the volume's directory; so it is with the machine's).
//
// Blocking, and slow where data is copied: call it on a thread that may wait (it runs a loop of its
// own). Nothing in a directory that came is followed out of it (volume_travel.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "disk/closed_volume.h"
#include "machine/vm/machine_store.h"
#include "machine/volume_store.h"

namespace berth::machine {

struct ExportedMachine {
  std::string path;
  std::uint64_t bytes = 0;  // in its disks, without their holes
};

/// Copies the machine's directory to `to`, which becomes one. The machine is off and its disks
/// closed
/// (`in_use`), and stays. already_exists; nothing is left after an error or a cancel.
Result<ExportedMachine> export_machine(const StateLayout& state, const std::string& machine,
                                       const std::string& to, const VolumeJob& job);

struct MachineImport {
  std::string from;  // a machine's directory: exported, or copied with `cp -a` when it was off
  std::string name;  // that it gets; "" for its own
  disk::Arrival arrival = disk::Arrival::moved;
};
struct ImportedMachine {
  MachineRecord record;
  std::vector<std::string> void_refpoints;  // VOLUME@REFPOINT, of a copy
};

/// Copies the directory into the machines of this host. `moved`: the same machine, all of its
/// reference points stay good. `copied`: another machine, with an identity of its own and without
/// reference points. `precondition` where a disk cannot come as it was asked, or stands on
/// something that is not here; already_exists; nothing is left after an error.
Result<ImportedMachine> import_machine(const StateLayout& state, const MachineImport& request,
                                       const VolumeJob& job);

}  // namespace berth::machine
