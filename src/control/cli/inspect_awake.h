// A container that somebody wants something of: one that is hibernated has no socket for that, and
// is resumed first.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/cli/api_client.h"

namespace berth::control::cli {

/// A Container of the API. Blocking.
Result<nlohmann::json> inspect_awake(const ApiClient& client, const std::string& name);

}  // namespace berth::control::cli
