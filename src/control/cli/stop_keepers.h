// Ending keepers without a daemon.
#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"

namespace berth::control::cli {

/// Asks every keeper of the run directory that answers to close its volume and end; how many did.
/// Removes the API's socket of a daemon that was killed. Blocking, bounded.
struct StoppedKeepers {
  std::size_t keepers = 0;
  std::size_t machines = 0;
};

Result<StoppedKeepers> stop_keepers(const std::string& state_dir, const std::string& run_dir);

}  // namespace berth::control::cli
