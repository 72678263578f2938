// When to copy another round of a memory that is written meanwhile, when to slow the machine down,
// and when to stop it for the last round (DESIGN §6, rule 1). Pure: no clock, no I/O.
//
//   scan.take(); writer.copy_all();
//   loop: dirty = scan.take(); writer.copy(dirty, …); policy.next({dirty, …})
//   stop the machine; writer.stage(scan.take()); save its devices; let it go on
//
// Not for two threads at once.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/units.h"

namespace berth::memory {

struct RoundLimits {
  /// How long the machine may stand still for the last round, without its device state.
  Duration pause_goal = std::chrono::milliseconds(25);
  /// What every last round costs, however little there is to copy: the scan.
  Duration pause_least = std::chrono::milliseconds(5);
  /// From the decision to stop until the machine stands still; it goes on writing.
  Duration stopping = std::chrono::milliseconds(5);
  /// How fast the last round is copied into memory.
  std::uint64_t stage_bytes_per_second = GiB;
  /// The last round never has more bytes than this, if that can be had by waiting or slowing.
  std::uint64_t staging_max = 64 * MiB;
  unsigned rounds_max = 40;
  Duration time_max = std::chrono::seconds(120);  // from the first round's end
  /// What is left to the machine of its CPU time at the slowest, of a hundred.
  unsigned slowest_percent = 20;
};

struct Round {
  std::uint64_t bytes_dirty = 0;  // what take() gave
  Duration since_last_take{};     // in which they were written
  Duration copying{};             // from this take() until they were copied
};

struct RoundDecision {
  enum class Step : std::uint8_t {
    another_round,
    slow_down,  // to `percent` of what it has without us, then another round
    stop_now
  };
  Step step = Step::another_round;
  unsigned percent = 100;  // what the machine is to run at from now on
  /// If it is stopped now.
  std::uint64_t last_round_bytes = 0;
  Duration pause{};
  /// With stop_now: whether the goal is kept. If not, a limit of rounds or time was reached: who
  /// asked for a pause that is never longer gives up now.
  bool within_goal = false;
};

class RoundPolicy {
 public:
  explicit RoundPolicy(RoundLimits limits) : limits_(limits) {}

  /// After each round but the one that copies everything.
  RoundDecision next(const Round& round);

 private:
  RoundLimits limits_;
  unsigned rounds_ = 0;
  unsigned stuck_ = 0;  // rounds one after the other that did not get smaller
  double elapsed_s_ = 0;
  double previous_bytes_ = 0;
  unsigned percent_ = 100;
};

}  // namespace berth::memory
