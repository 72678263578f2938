// The image's own programs that make a clone another one: the executables of /etc/berth/clone.d, in
// the order of their names, one after the other.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "agent/fields.h"
#include "agent/program/child.h"
#include "agent/program/event_loop.h"
#include "agent/program/timer.h"

namespace berth::agent {

struct HookSettings {
  std::vector<std::string> environment;
  std::chrono::milliseconds limit{};  // of each
  int cgroup = -1;                    // which they join
};

/// Stays where it is in memory. The loop outlives it.
class Hooks {
 public:
  using Done = std::function<void(Result<void>)>;

  explicit Hooks(EventLoop& loop) : loop_(loop) {}

  /// Those that found() says, one after the other. Not while it is running. Calls `done` once,
  /// perhaps at once: after the last one, or the first that fails. `limit`: there are too many;
  /// `precondition`: one has failed; `timed_out`.
  void run(std::vector<std::string> names, HookSettings settings, Done done);
  /// Their names, the last one first.
  static std::vector<std::string> found();
  /// Whether this child was one. Call it for children that nobody else knows.
  bool reaped(pid_t pid, int status);
  /// What each has said and how it ended, of those that have run.
  const FieldWriter& report() const { return report_; }

 private:
  void start_next();
  void watch(const Fd& fd);
  void read_output(const Fd& fd);
  void finish(Result<void> result);

  EventLoop& loop_;
  HookSettings settings_;
  Done done_;
  std::vector<std::string> left_;  // the next one is the last
  ChildSpec spec_;
  Child child_;
  std::string output_;
  bool is_late_ = false;
  std::unique_ptr<Timer> deadline_;
  FieldWriter report_;
};

}  // namespace berth::agent
