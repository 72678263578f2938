// Exporting one volume's directory: copied beside where it is to be, which gets its name when all
// is durable. Whatever goes wrong, nothing is left; of a process that died, clear_leftovers() finds
// it.
#pragma once

#include <string>

#include "async/uring_loop.h"
#include "base/result.h"
#include "machine/job_observer.h"
#include "machine/layout.h"
#include "machine/volume_store.h"

namespace berth::machine {

/// `to`: absolute, not there (already_exists), and not among the volumes of this host.
Task<Result<ExportedVolume>> export_volume_directory(UringLoop& loop, StateLayout state,
                                                     std::string name, std::string to,
                                                     JobObserver& observer);

}  // namespace berth::machine
