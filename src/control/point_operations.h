// What checkpoints and reference points have in common.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"

namespace berth::control {

enum class PointKind : std::uint8_t { checkpoint, refpoint };
std::string_view to_string(PointKind kind);  // "checkpoint", "reference point"

/// A cut over all volumes at once; a Cut of the API.
Async<Result<nlohmann::json>> make_cut(Services& services, std::vector<std::string> volumes,
                                       CutWish wish);

/// Those of one volume, or of all for "". Provisional ones are not there yet.
Async<Result<nlohmann::json>> list_points(Services& services, std::string volume, PointKind kind);

/// One, by name; `not_found`.
Async<Result<nlohmann::json>> find_point(Services& services, std::string volume, std::string name,
                                         PointKind kind);

}  // namespace berth::control
