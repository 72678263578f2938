#include "memory/round_policy.h"

#include <algorithm>
#include <cmath>

namespace berth::memory {
namespace {

using Step = RoundDecision::Step;

// A round that does not get smaller than this part of the one before has not got smaller.
constexpr double shrinks_at_all = 0.75;
constexpr unsigned stuck_rounds_max = 2;

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

/// What is written in `time_s`. If that is longer than the time that `bytes_dirty` were written in,
/// in proportion; if it is shorter, less than in proportion: machines write the same pages again
/// and again, and a long time shows each of them once. Between "all new" and "all the same".
double written_in(double time_s, const Round& round) {
  const auto bytes = static_cast<double>(round.bytes_dirty);
  if (round.since_last_take <= Duration::zero()) return bytes;
  const double ratio = std::max(time_s, 0.0) / seconds(round.since_last_take);
  return bytes * (ratio > 1 ? ratio : std::sqrt(ratio));
}

}  // namespace

RoundDecision RoundPolicy::next(const Round& round) {
  ++rounds_;
  elapsed_s_ += seconds(round.since_last_take);
  const auto bytes = static_cast<double>(round.bytes_dirty);
  const bool first = rounds_ == 1;
  const bool shrank = first || bytes <= shrinks_at_all * previous_bytes_;
  stuck_ = shrank ? 0 : stuck_ + 1;
  previous_bytes_ = bytes;

  const double last_round = written_in(seconds(round.copying) + seconds(limits_.stopping), round);
  const double copying_s = last_round / static_cast<double>(limits_.stage_bytes_per_second);
  const bool fits = last_round <= static_cast<double>(limits_.staging_max) &&
                    copying_s <= seconds(limits_.pause_goal - limits_.pause_least);
  // Capped, so that it stays a number of nanoseconds.
  const auto copying =
      std::chrono::duration_cast<Duration>(std::chrono::duration<double>(std::min(copying_s, 1e6)));
  RoundDecision decision{.percent = percent_,
                         .last_round_bytes = static_cast<std::uint64_t>(std::min(last_round, 1e18)),
                         .pause = limits_.pause_least + copying,
                         .within_goal = fits};

  const bool out_of_patience =
      rounds_ >= limits_.rounds_max || elapsed_s_ >= seconds(limits_.time_max);
  const bool is_slowest = percent_ <= limits_.slowest_percent;
  if (out_of_patience || (!fits && is_slowest && stuck_ >= stuck_rounds_max)) {
    decision.step = Step::stop_now;
  } else if (fits) {
    // Another round costs the machine nothing, as long as it makes the pause really shorter.
    const bool worth_it = shrank && copying > limits_.pause_least / 4;
    decision.step = worth_it ? Step::another_round : Step::stop_now;
  } else if (!is_slowest && stuck_ >= stuck_rounds_max) {
    stuck_ = 0;
    percent_ = std::max(percent_ / 2, limits_.slowest_percent);
    decision.step = Step::slow_down;
    decision.percent = percent_;
  }
  return decision;
}

}  // namespace berth::memory
