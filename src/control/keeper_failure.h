// What a keeper left behind, read by whoever has to go on without it. Reading its files blocks
// shortly.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::control {

/// Why a keeper ended before its volume was open: the last error in its log.
Error keeper_failure(std::string_view log);

/// Whether the keeper of `volume` had listeners when it ended (its serve.json).
bool was_serving(const std::string& run_dir, const std::string& volume);

}  // namespace berth::control
