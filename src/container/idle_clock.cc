#include "container/idle_clock.h"

namespace berth::container {

void IdleClock::sample(Instant now, Duration cpu_time) {
  if (sample_ && now > sample_->at) {
    const auto taken = static_cast<double>((cpu_time - sample_->cpu_time).count());
    const auto elapsed = static_cast<double>((now - sample_->at).count());
    if (taken > elapsed * idle_cpu_share) touch(now);
  }
  sample_ = Sample{.at = now, .cpu_time = cpu_time};
}

}  // namespace berth::container
