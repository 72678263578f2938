// SimScheduler: what a simulation's loops share: virtual time, what happens when, and the choices.
// An event is scheduled at most once at a time and takes itself back when it goes.
#pragma once

#include <chrono>
#include <cstdint>
#include <set>
#include <vector>

#include "base/clock.h"
#include "testing/sim_random.h"

namespace berth {

class SimLoop;
class SimScheduler;

/// Every simulation begins in 2026.
inline std::chrono::system_clock::time_point sim_wall_time(Instant now) {
  constexpr std::chrono::sys_seconds start = std::chrono::sys_days(std::chrono::year(2026) / 1 / 1);
  return start +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(now.time_since_epoch());
}

class SimEvent {
 public:
  SimEvent() = default;
  SimEvent(const SimEvent&) = delete;
  SimEvent& operator=(const SimEvent&) = delete;
  virtual ~SimEvent() { unschedule(); }
  virtual void fire() = 0;
  bool scheduled() const { return scheduler_ != nullptr; }
  inline void unschedule();

 private:
  friend class SimScheduler;
  SimScheduler* scheduler_ = nullptr;
  Instant due_{};
  std::uint64_t order_ = 0;
};

class SimScheduler {
 public:
  explicit SimScheduler(std::uint64_t seed) : random(seed), seed_(seed) {}
  SimScheduler(const SimScheduler&) = delete;
  SimScheduler& operator=(const SimScheduler&) = delete;
  ~SimScheduler() {
    for (SimEvent* event : events_) event->scheduler_ = nullptr;
  }

  void schedule(SimEvent& event, Instant due) {
    event.unschedule();
    event.scheduler_ = this;
    event.due_ = due;
    event.order_ = ++order_;
    events_.insert(&event);
  }
  void unschedule(SimEvent& event) {
    events_.erase(&event);
    event.scheduler_ = nullptr;
  }
  bool has_events() const { return !events_.empty(); }
  Instant next_due() const { return (*events_.begin())->due_; }
  void fire_next() {
    SimEvent& event = **events_.begin();
    unschedule(event);
    if (event.due_ > now) now = event.due_;
    event.fire();
  }
  std::uint64_t seed() const { return seed_; }

  /// Folds what has happened into the hash that two runs of one seed share.
  void trace(std::uint64_t what, std::uint64_t detail) {
    trace_hash = mix64(trace_hash ^ what) + mix64(detail);
  }

  SimRandom random;
  Instant now{};
  std::uint64_t steps = 0;
  std::uint64_t trace_hash = 0;
  std::vector<SimLoop*> loops;

 private:
  struct Earlier {
    bool operator()(const SimEvent* left, const SimEvent* right) const {
      if (left->due_ != right->due_) return left->due_ < right->due_;
      return left->order_ < right->order_;
    }
  };
  std::uint64_t seed_;
  std::uint64_t order_ = 0;
  std::set<SimEvent*, Earlier> events_;
};

inline void SimEvent::unschedule() {
  if (scheduler_ != nullptr) scheduler_->unschedule(*this);
}

}  // namespace berth
