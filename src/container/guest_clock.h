// The time that a guest is told.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/clock.h"

namespace berth::container {

/// Since the epoch, as an agent's `time_ns` has it.
inline std::uint64_t time_ns(const Clock& clock) {
  const auto now = clock.wall_time().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

}  // namespace berth::container
