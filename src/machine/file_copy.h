// One file's bytes into another one: by sharing its blocks where the file system can, else its data
// and not its holes. One loop.
#pragma once

#include <cstdint>
#include <string>

#include "async/file.h"
#include "async/uring_loop.h"
#include "base/fd.h"
#include "machine/job_observer.h"

namespace berth::machine {

/// Makes the empty file `to` share all blocks of `from` (FICLONE); false where that cannot be.
/// Blocking.
bool share_blocks(const Fd& from, const Fd& to);

/// The first `size` bytes of `from` into the empty file `to`, which gets that size. What is zero
/// stays a hole. Nothing is synced.
Task<Result<void>> copy_data(Loop& loop, File& from, std::uint64_t size, File& to,
                             JobObserver& observer);

}  // namespace berth::machine
