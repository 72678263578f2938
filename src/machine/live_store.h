// Where the live map of a volume lies: memory that outlives its keeper, but not the machine.
//
// RUN_DIR/live/VOLUME if the run directory is on a tmpfs, as /run is; else
// /dev/shm/berth-HASH/VOLUME, where HASH stands for the run directory. All blocking.
#pragma once

#include <memory>
#include <string>

#include "async/shared_memory.h"
#include "base/result.h"
#include "machine/layout.h"

namespace berth::machine {

/// The directory. `precondition` if there is no tmpfs, or somebody else has taken the place.
Result<std::string> live_directory(const RunLayout& run, const std::string& volume);

/// Made if it is not there.
Result<std::unique_ptr<FileSharedMemoryStore>> open_live_store(const RunLayout& run,
                                                               const std::string& volume);

/// After a volume was closed: removes the directory, if there is no map in it any more.
void release_live_store(const RunLayout& run, const std::string& volume);

/// Gives the memory of a volume that is no more back; it is no error if there is none.
Result<void> remove_live_store(const RunLayout& run, const std::string& volume);

}  // namespace berth::machine
