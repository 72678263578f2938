// The directory of volumes, as volume_store.h describes it: what is in it, who works on what, and
// who stands on whom. Blocking. Several processes may be at it at once.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "machine/layout.h"

namespace berth::machine {

/// Also of a dangling link.
bool path_exists(const std::string& path);
/// The names in a directory, in order; none if it is not there.
std::vector<std::string> names_in(const std::string& path);
/// Makes the names in it durable.
Result<void> sync_directory(const std::string& path);
Result<void> remove_tree(const std::string& path);

/// An exclusive flock on a file or directory, until it goes; nothing where somebody has it.
Result<std::optional<Fd>> try_lock(const std::string& path);

/// Where a volume is while it is being made; one that lies there without a lock is a dead
/// process's.
std::string creating_path(const StateLayout& state, const std::string& volume);
std::string removing_path(const StateLayout& state, const std::string& volume);
/// Makes the directory creating_path() and locks it: `in_use` while somebody else is making that
/// volume.
Result<Fd> claim_creation(const StateLayout& state, const std::string& volume);
/// Removes what dead processes have left of creations and removals, as far as that goes.
void clear_leftovers(const StateLayout& state);

// --- Pins: which volume has which checkpoint as its backing. They lie with the one that is stood
// on, so that its keeper sees them without asking anybody.

/// The volume whose data the file or block device is; "" where none of them has it.
std::string volume_of_data(const StateLayout& state, const std::string& path);

/// not_found if there is no such volume; whether the checkpoint is there is for the caller to find
/// out afterwards.
Result<void> pin(const StateLayout& state, const std::string& volume, const std::string& checkpoint,
                 const std::string& clone);
/// Every pin that the volume `clone` has put.
void remove_pins_of(const StateLayout& state, const std::string& clone);
/// The volumes that stand on the checkpoint, or, for "", on any of the volume's.
std::vector<std::string> dependents_of(const StateLayout& state, const std::string& volume,
                                       const std::string& checkpoint);

}  // namespace berth::machine
