// Copying extents to the same places of a file: several pieces in flight, zeros left out. One loop.
#pragma once

#include <cstdint>

#include "async/file.h"
#include "async/loop.h"
#include "async/task.h"
#include "base/units.h"
#include "disk/volume.h"
#include "machine/extent_source.h"
#include "machine/job_observer.h"

namespace berth::machine {

constexpr std::size_t copy_piece_size = 1 * MiB;  // bytes of one read
constexpr std::size_t copy_pieces_in_flight = 8;

/// Where bytes come from. `into` is page aligned, and so is `offset` but for an extent's beginning.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual Task<Result<void>> read(std::uint64_t offset, MutableBytes into) = 0;
};

struct CopyOptions {
  bool clear_zeros =
      false;  // the file may hold other bytes: zeros replace them; else it is all holes
  std::uint64_t total = 0;  // bytes, for the progress
  bool count_gaps = false;  // the progress counts what lies between the extents, too
};

struct CopyOutcome {
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;  // in the extents
};

/// Ends when nothing is in flight any more, with the first error where there was one. Nothing is
/// synced. Everything outlives the task.
Task<Result<CopyOutcome>> copy_extents(Loop& loop, ByteSource& from, ExtentSource& extents,
                                       File& to, JobObserver& observer, CopyOptions options);

}  // namespace berth::machine
