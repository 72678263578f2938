// What keeps the workload from running: everything that `start` has started is in one cgroup
// (version 2), and the hooks of a clone in another, until what they leave behind joins the first.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include <sys/types.h>

#include "agent/program/event_loop.h"
#include "agent/program/timer.h"
#include "base/fd.h"

namespace berth::agent {

/// The loop outlives it. The directories are open from the beginning, so what the workload does to
/// the mounts does not matter.
class Workload {
 public:
  using Done = std::function<void(Result<void>)>;

  explicit Workload(EventLoop& loop);

  /// For who joins it; not there (-1) with a kernel that has no cgroups.
  int cgroup() const { return workload_.get(); }
  int hooks_cgroup() const { return hooks_.get(); }

  /// `done` is called when nobody runs any more, which may be at once; `timed_out` with everybody
  /// running again, `cancelled` by a thaw. An error that is returned: `done` is not called.
  Result<void> freeze(std::chrono::milliseconds limit, Done done);
  Result<void> thaw();
  bool is_running() const { return state_ == State::running; }
  bool is_frozen() const { return state_ == State::frozen; }

  /// Freezes a process that is none of the workload's, and thaws it, as far as it goes.
  void rehearse(pid_t process);

  /// What hooks have left running belongs to the workload from now on.
  Result<void> adopt_hooks();
  void kill_hooks();

 private:
  enum class State : std::uint8_t { running, freezing, frozen };

  Result<void> set_frozen(bool frozen);
  void look_at_events();
  void finish(State state, Result<void> result);

  EventLoop& loop_;
  Fd workload_;
  Fd hooks_;
  Fd rehearsal_;
  State state_ = State::running;
  Fd events_;  // while freezing
  Fd switch_;  // cgroup.freeze
  std::unique_ptr<Timer> deadline_;
  Done done_;
};

}  // namespace berth::agent
