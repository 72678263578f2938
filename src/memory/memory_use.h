// How much memory a machine takes that nobody else has, and asking the kernel to swap it out.
//
// Blocking: on a worker thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <sys/types.h>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "memory/write_protection.h"

namespace berth::memory {

/// Bytes.
struct MemoryUse {
  std::uint64_t guest = 0;    // in RAM: private pages of its memory, and what its memory object has
  std::uint64_t swapped = 0;  // the same, swapped out
  std::uint64_t process = 0;  // of QEMU beside it: heap, stacks, translated code; not swapped out
};
/// As the memory was mapped when it was last looked at. Milliseconds for 256 MiB.
Result<MemoryUse> memory_use(const GuestMemory& memory);

/// Whether this host has swap at all, used up or not.
bool has_swap();

/// Asks the kernel to swap out what is the process's alone: private pages of the guest's memory,
/// its memory object, and anonymous memory of QEMU; never the template, which others use. The
/// machine may run, and gets back what it touches. How many bytes were asked for: memory_use()
/// tells what came of it, on the process's side. `precondition` on a host without swap.
Result<std::uint64_t> trim(GuestMemory& memory);

/// What of the process's own memory, beside the guest's, is in RAM: after trim(), what it has come
/// to since.
Result<std::vector<PageRegion>> own_pages(pid_t pid);
/// Asks the kernel to bring these back from swap, for which the process would wait page by page:
/// about 6 ms for 1,000 pages of compressed swap. The process may run.
Result<void> swap_in(pid_t pid, std::span<const PageRegion> pages);

/// The same as trim() for the clean pages of page files, which needs no swap: what is not used
/// again at once is read in again. As far as the kernel likes.
void drop_page_files(const GuestMemory& memory);

}  // namespace berth::memory
