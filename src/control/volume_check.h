// The offline check of a volume, for the daemon's jobs and for `berth volume check`.
#pragma once

#include <string>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"

namespace berth::control {

struct VolumeCheckRequest {
  std::string directory;  // of the volume
  std::string shown_as;   // its name for people
  bool repair = false;
  // Where a keeper may have left a live map of it: the volume's name and the run directory. Empty
  // for a directory that belongs to no host; then the map of a volume that was not closed is not
  // repaired.
  std::string volume;
  std::string run_dir;
};

/// A CheckReport of the API. Blocking: it reads the map and all holds. `in_use` while a keeper has
/// the volume open, `not_found` if it is none.
Result<nlohmann::json> check_volume(const VolumeCheckRequest& request);

/// The same on a worker.
Async<Result<nlohmann::json>> check_volume_on(boost::asio::thread_pool& workers,
                                              VolumeCheckRequest request);

}  // namespace berth::control
