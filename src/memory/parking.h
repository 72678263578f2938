// Parking: the memory of a machine that stands still moves from RAM to a page file, from where the
// kernel brings it back page by page when the machine runs on (DESIGN §6, rule 6). Nobody has to be
// there for that: no handler of faults, no keeper.
//
// Blocking, as long as the disk takes: on a worker thread, one call at a time for a machine. The
// caller has stopped the machine's CPUs (QMP `stop`), and sees to it that nothing is sent into the
// guest meanwhile, its agent's port included: what is written to memory between reading a page and
// mapping it anew is lost.
//
// A clone's pages are those that differ from the template. A machine with memory of its own loses
// its tracking: its memory object is empty then, and DirtyScan::attach() refuses it, so that no
// checkpoint can be made of it, until restore().
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "memory/memory_use.h"

namespace berth::memory {

struct ParkReport {
  MemoryUse before;
  MemoryUse after;
  std::uint64_t written = 0;         // bytes of pages in the page file
  std::uint64_t mapped = 0;          // bytes of the memory that are mapped from it
  std::uint64_t back_to_source = 0;  // bytes that were as in the template, or zero
};

/// Makes `path` (already_exists), writes what is private to it, and has it mapped in its place. A
/// machine that was parked before writes only what it has written since: `path` is a further file,
/// and the older ones are needed for as long as is_mapped() says so.
///
/// Where it fails the machine can go on as it was: with no page file (`no_space` where the disk is
/// full, and whatever fails before the first page is mapped), or, where some of it is mapped
/// already, with one that has to be kept, which is_mapped() tells; what is not known leaves the
/// file.
Result<ParkReport> park(GuestMemory& memory, const std::string& path);

struct SaveReport {
  MemoryUse before;
  std::uint64_t written = 0;  // bytes of pages in the page file
};
/// Makes `path` (already_exists), and writes all that is not as in the template, or zero, to it:
/// with that a QEMU that knows nothing of the machine can go on from it (map_saved()). Of this one
/// nothing is mapped anew. Where it fails there is no file (`no_space`).
Result<SaveReport> save(GuestMemory& memory, const std::string& path);
/// Whether `path` is such a file already, as that of a machine is which was parked once.
Result<bool> is_saved_in(GuestMemory& memory, const std::string& path);
/// Maps what was saved over a memory in which nothing has happened so far.
Result<void> map_saved(GuestMemory& memory, const std::string& path);

/// Brings all of it back into the memory object, and has it mapped and tracked as it was; page
/// files are not needed any more. For machines with memory of their own, `precondition` for clones.
/// `no_space` if the memory directory is full: the machine stays parked then. Of `most` bytes
/// (whole granules) a piece of it; whether all is there.
Result<bool> restore(GuestMemory& memory, std::uint64_t most = UINT64_MAX);
/// Has the next piece of that size in RAM, so that restore() need not wait for a disk. The machine
/// may run.
Result<void> read_in(GuestMemory& memory, std::uint64_t most);

/// Whether any of the memory is mapped from this file: then it must stay, and stay as it is.
Result<bool> is_mapped(GuestMemory& memory, const std::string& path);

/// Gives back what of a page file is mapped no more, which leaves its working set, too: the file
/// itself where nothing of it is mapped. Whether it is still there. Not while it is unknown what
/// park() has done.
Result<bool> release_unmapped(GuestMemory& memory, const std::string& path);

/// Notes in a page file which of its granules the machine has come to since it was last parked, for
/// PageFile::prefetch() before the next resume; how many bytes. The machine runs. Best done once it
/// has run for a while (working_set_delay_ms): what it touches later is not what it waits for. What
/// was noted before stays, for not every resume comes to all of it, up to working_set_max bytes.
Result<std::uint64_t> record_working_set(GuestMemory& memory, const std::string& path);
constexpr int working_set_delay_ms = 1000;
constexpr std::uint64_t working_set_max = std::uint64_t{32} << 20;

}  // namespace berth::memory
