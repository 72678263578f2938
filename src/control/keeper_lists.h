// What keepers answer, as the API shows it.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"
#include "control/keeper_connection.h"

namespace berth::control {

/// All pages of `checkpoint.list` or `refpoint.list`, as the keeper says them.
Async<Result<nlohmann::json>> list_all(KeeperChannel& channel, std::string method,
                                       std::string member);

/// A keeper's checkpoint or reference point as a Checkpoint or Refpoint of the API; null for null.
/// `protocol` if something is missing.
Result<nlohmann::json> shown_checkpoint(const std::string& volume,
                                        const nlohmann::json& checkpoint);
Result<nlohmann::json> shown_refpoint(const std::string& volume, const nlohmann::json& refpoint);
/// A cut's outcome as a CutPart.
Result<nlohmann::json> shown_cut_part(const std::string& volume, const nlohmann::json& outcome);

/// The members of a schema out of `source`; `protocol` where one is missing or of another kind of
/// type.
Result<nlohmann::json> pick(std::string_view schema, const nlohmann::json& source);

}  // namespace berth::control
