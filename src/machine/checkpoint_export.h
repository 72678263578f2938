// Writing a checkpoint, or what changed since a reference point until it, into a raw file.
//
// docs/formats/keeper-control.md says what is written where. On the volume's loop; the volume and
// the observer outlive the task. Memory is bounded: a few pieces in flight, extents page by page.
// Where it fails or is cancelled, nothing is left of a new file, and a file that was being patched
// needs the same export again.
#pragma once

#include <cstdint>
#include <string>

#include "async/task.h"
#include "async/uring_loop.h"
#include "disk/volume.h"
#include "machine/control_messages.h"
#include "machine/job_observer.h"

namespace berth::machine {

struct CheckpointExportOutcome {
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;  // in the extents
  bool exact = true;        // false: some of it may not have changed
};

Task<Result<CheckpointExportOutcome>> export_checkpoint(UringLoop& loop, disk::Volume& volume,
                                                        CheckpointExportRequest request,
                                                        JobObserver& observer);

}  // namespace berth::machine
