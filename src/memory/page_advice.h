// Advice to the kernel about another process's pages (process_madvise(2), Linux 5.10).
#pragma once

#include <span>

#include <sys/uio.h>

#include "base/fd.h"
#include "base/result.h"

namespace berth::memory {

/// MADV_PAGEOUT, or MADV_WILLNEED, for pieces (addresses, bytes) of the memory of `process`, a
/// pidfd. What the process has unmapped meanwhile is passed over. Blocking. The error has the
/// kernel's number.
Result<void> advise_pages(const Fd& process, std::span<const iovec> pieces, int advice);

}  // namespace berth::memory
