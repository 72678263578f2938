// Where memory that outlives a process lies: the tmpfs for live maps and memory objects.
#pragma once

#include <string>

namespace berth::machine {

/// The run directory, or its nearest ancestor that is there, if that is on a tmpfs; else /dev/shm
/// if that is one; else "". The same choice as live_directory's (machine/live_store.h), without
/// making anything.
std::string memory_place(const std::string& run_dir);

}  // namespace berth::machine
