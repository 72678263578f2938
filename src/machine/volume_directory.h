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
/// Gives the directory `from` the name `to`, on the same file system, if nothing has it:
/// already_exists. The names are durable after a sync of both parents.
Result<void> rename_directory(const std::string& from, const std::string& to);

/// An exclusive flock on a file or directory, until it goes; nothing where somebody has it.
Result<std::optional<Fd>> try_lock(const std::string& path);

/// The same, of a file that is made where it is not there; `in_use` with these words where somebody
/// has it.
Result<Fd> take_lock_file(const std::string& path, const std::string& in_use);

/// Where a volume is while it is being made; one that lies there without a lock is a dead
/// process's.
std::string creating_path(const StateLayout& state, const std::string& volume);
std::string removing_path(const StateLayout& state, const std::string& volume);
/// Makes the directory, empty, and locks it; what a dead process has left there goes. `in_use`
/// while somebody has the lock: `what` is for the message ("somebody is making …").
Result<Fd> claim_directory(const std::string& path, const std::string& what);
/// Has clear_leftovers() remove a directory that is claimed somewhere else, too, when its process
/// is dead; the name of this mark, to be removed when the directory is gone or done.
Result<std::string> mark_for_clearing(const StateLayout& state, const std::string& path);
/// Removes what dead processes have left of creations, removals and exports, as far as that goes.
void clear_leftovers(const StateLayout& state);

// --- Pins: which volume has which checkpoint as its backing. They lie with the one that is stood
// on, so that its keeper sees them without asking anybody.

/// The volume whose data the file or block device is; "" where none of them has it.
std::string volume_of_data(const StateLayout& state, const std::string& path);

/// not_found if there is no such volume; whether the checkpoint is there is for the caller to find
/// out afterwards.
Result<void> pin(const StateLayout& state, const std::string& volume, const std::string& checkpoint,
                 const std::string& clone);
bool is_pinned(const StateLayout& state, const std::string& volume, const std::string& checkpoint,
               const std::string& clone);
/// Every pin that the volume `clone` has put.
void remove_pins_of(const StateLayout& state, const std::string& clone);
/// The volumes that stand on the checkpoint, or, for "", on any of the volume's.
std::vector<std::string> dependents_of(const StateLayout& state, const std::string& volume,
                                       const std::string& checkpoint);

/// in_use, with the name, where dependents_of() any of its checkpoints are there.
Result<void> check_no_dependents(const StateLayout& state, const std::string& volume);

}  // namespace berth::machine
