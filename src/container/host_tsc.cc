#include "container/host_tsc.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace berth::container {

#if defined(__x86_64__)

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds apart{20};
constexpr int attempts = 16;

struct Sample {
  std::uint64_t counter = 0;
  Clock::time_point time;
};

/// Both at one instant, as near as can be: of some attempts, the one that took the shortest time.
Sample sample() {
  Sample best;
  auto shortest = std::numeric_limits<std::uint64_t>::max();
  for (int i = 0; i < attempts; ++i) {
    const std::uint64_t before = __rdtsc();
    const Clock::time_point time = Clock::now();
    const std::uint64_t after = __rdtsc();
    if (after - before >= shortest) continue;
    shortest = after - before;
    best = {.counter = before + (after - before) / 2, .time = time};
  }
  return best;
}

}  // namespace

std::uint64_t measure_host_tsc_khz() {
  const Sample first = sample();
  std::this_thread::sleep_for(apart);
  const Sample second = sample();
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(second.time - first.time);
  const auto counted = static_cast<double>(second.counter - first.counter);
  return static_cast<std::uint64_t>(std::llround(counted * 1e6 / static_cast<double>(ns.count())));
}

#else

std::uint64_t measure_host_tsc_khz() { return 0; }

#endif

}  // namespace berth::container
