// Making one volume: in a directory of its own, which gets the volume's name when all is durable.
//
// One loop, which waits for it. Whatever goes wrong, nothing is left when the object goes.
#pragma once

#include <memory>
#include <string>

#include "async/file.h"
#include "async/uring_loop.h"
#include "base/fd.h"
#include "disk/volume.h"
#include "machine/job_observer.h"
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
  Result<void> claim();
  Task<Result<void>> prepare_backing(disk::CreateOptions& options);
  Task<Result<void>> import_data(disk::CreateOptions& options);
  bool clone_file(const std::string& from);
  Task<Result<void>> copy_data(File& from, std::uint64_t size, File& to);
  Result<void> adopt_data(disk::CreateOptions& options);
  Task<Result<VolumeSummary>> summarise();
  Result<void> publish();

  UringLoop& loop_;
  const StateLayout& state_;
  const RunLayout& run_;
  const VolumeCreateRequest& request_;
  JobObserver& observer_;
  const std::string path_;
  Fd lock_;
  std::unique_ptr<Directory> directory_;
  bool claimed_ = false;  // the directory is ours, and goes with us
  bool pinned_ = false;
};

}  // namespace berth::machine
