// A machine's RAM as a file in the memory directory: MEMORY_DIR/ID/ram, mode 0600 of the user that
// QEMU runs as; ID is random, so that the path cannot be guessed. The directories stay the maker's,
// and others may only pass through them: QEMU can neither replace its file nor list those of
// others.
//
// Blocking. A memory object outlives whoever made it; remove_memory_object takes it away.
#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

#include "base/ids.h"
#include "base/result.h"

namespace berth::memory {

struct MemoryOwner {
  uid_t uid = 0;
  gid_t gid = 0;
};

std::string memory_object_path(const std::string& memory_dir, const Id128& id);

/// Makes it, zero, nothing allocated; the path of its file. The memory directory is made if only it
/// is missing; it must be on a tmpfs (`unsupported`). Memory objects take their space as the guest
/// touches it, so that all of this directory must fit with their full sizes: `no_space` with the
/// sum where the file system is too small for it now; `limit` where it never can hold it.
Result<std::string> create_memory_object(const std::string& memory_dir, const Id128& id,
                                         std::uint64_t size, MemoryOwner owner);
/// Makes a template of one that no machine writes to any more: it is the caller's (root's), mode
/// 0444, from now on, and no clone can change it. `in_use` if somebody has it open for writing, or
/// mapped so: then it stays as it was. Clones that look at what was never written to make it grow,
/// up to its full size, which create_memory_object() counts.
Result<void> seal_memory_object(const std::string& memory_file);
/// Also of one that is gone.
Result<void> remove_memory_object(const std::string& memory_dir, const Id128& id);

}  // namespace berth::memory
