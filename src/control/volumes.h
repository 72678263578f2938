// The volumes of the state directory, as the control plane sees them: its directories, through
// machine::VolumeStore.
//
// On the control plane's thread; what blocks runs on the workers.
#pragma once

#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"
#include "control/keepers.h"
#include "machine/volume_store.h"

namespace berth::control {

class Volumes final : public VolumeFacts {
 public:
  Volumes(boost::asio::thread_pool& workers, std::string state_dir, std::string run_dir);

  Result<void> check_exists(const std::string& volume) const override;
  Result<std::string> backing_volume(const std::string& volume) const override;

  Async<Result<std::vector<machine::VolumeSummary>>> list();
  /// The job's report comes on a worker's thread.
  Async<Result<machine::VolumeSummary>> create(machine::VolumeCreateRequest request,
                                               machine::VolumeJob job);
  /// The same.
  Async<Result<machine::ExportedVolume>> export_directory(std::string volume, std::string to,
                                                          machine::VolumeJob job);
  Async<Result<machine::ImportedVolume>> import_directory(machine::VolumeImportRequest request,
                                                          machine::VolumeJob job);
  /// Whether the last to have it open has closed it.
  Async<Result<bool>> is_closed(std::string volume);
  /// The volume whose directory this is, "" if it is none's.
  std::string volume_at(const std::string& directory) const;
  /// `in_use` while it is open somewhere, or while another volume stands on it.
  Async<Result<void>> remove(std::string volume);

 private:
  boost::asio::thread_pool& workers_;
  std::string state_dir_;
  machine::VolumeStore store_;
};

/// The volume that a backing specification names a checkpoint of, "" for any other backing.
std::string backing_volume_of(const std::string& backing);

}  // namespace berth::control
