// Time as the engine sees it. The real clock is the loop's; simulations turn their own.
#pragma once

#include <chrono>
#include <cstdint>

namespace berth {

using Duration = std::chrono::nanoseconds;
/// Monotonic time since an arbitrary start.
using Instant = std::chrono::time_point<std::chrono::steady_clock, Duration>;

constexpr std::int64_t to_microseconds(Duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Instant now() const = 0;
  virtual std::chrono::system_clock::time_point wall_time() const = 0;
};

}  // namespace berth
