// The offline check of a volume, for the daemon's jobs and for `berth volume check`.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "control/async.h"

namespace berth::control {

/// A CheckReport of the API about the volume in `directory`; `shown_as` is its name for people. Blocking. `in_use` while
/// a keeper has it open.
Result<nlohmann::json> check_volume(const std::string& directory, const std::string& shown_as, bool repair);

/// The same on a worker, for a volume of the state directory.
Async<Result<nlohmann::json>> check_volume_on(boost::asio::thread_pool& workers, std::string state_dir,
                                              std::string volume, bool repair);

}  // namespace berth::control
