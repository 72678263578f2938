// Making one volume: in a directory of its own, which gets the volume's name when all is durable.
//
// One loop, which waits for it. Whatever goes wrong, nothing is left when the object goes.
#pragma once

#include <memory>
#include <optional>

#include "async/file.h"
#include "async/uring_loop.h"
#include "disk/volume.h"
#include "machine/job_observer.h"
#include "machine/volume_claim.h"
#include "machine/volume_store.h"

namespace berth::machine {

class VolumeCreation {
 public:
  /// All of them outlive it.
  VolumeCreation(UringLoop& loop, const StateLayout& state, const RunLayout& run,
                 const VolumeCreateRequest& request, JobObserver& observer);
  VolumeCreation(const VolumeCreation&) = delete;
  VolumeCreation& operator=(const VolumeCreation&) = delete;
  ~VolumeCreation();

  /// Once.
  Task<Result<VolumeSummary>> run();

 private:
  disk::BackingOpener opener();
  Task<Result<void>> prepare_backing(disk::CreateOptions& options);
  Task<Result<void>> import_data(disk::CreateOptions& options);
  Result<void> adopt_data(disk::CreateOptions& options);
  Task<Result<void>> make_file_system(disk::CreateOptions& options);
  Task<Result<VolumeSummary>> summarise();

  UringLoop& loop_;
  const StateLayout& state_;
  const RunLayout& run_;
  const VolumeCreateRequest& request_;
  JobObserver& observer_;
  std::optional<VolumeClaim> claim_;
  std::unique_ptr<Directory> directory_;
  bool pinned_ = false;
};

}  // namespace berth::machine
