// Since when nobody has wanted anything of a guest, and it has computed nothing of its own. Pure:
// whoever has it says what time it is.
#pragma once

#include <chrono>
#include <optional>

#include "base/clock.h"

namespace berth::container {

/// How often its CPU time is looked at.
constexpr Duration idle_window = std::chrono::seconds(2);
/// Of one CPU over a window: what an idle guest may take. One with nginx takes 0.01 where it is
/// emulated (timer ticks, measured).
constexpr double idle_cpu_share = 0.04;

class IdleClock {
 public:
  explicit IdleClock(Instant now) : last_use_(now) {}

  /// It is, or was just now, in use.
  void touch(Instant now) { last_use_ = now; }
  /// What it has taken of CPU time so far: more than idle_cpu_share since the last time is use.
  void sample(Instant now, Duration cpu_time);
  /// The next sample is the first one: nobody has looked meanwhile, or it stood.
  void forget_sample() { sample_.reset(); }
  Duration idle(Instant now) const { return now - last_use_; }

 private:
  struct Sample {
    Instant at;
    Duration cpu_time;
  };
  Instant last_use_;
  std::optional<Sample> sample_;
};

}  // namespace berth::container
