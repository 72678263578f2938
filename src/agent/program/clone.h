// `become_clone`: everything that makes a restored template a machine of its own, in one go, before
// its workload runs on.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "agent/fields.h"
#include "agent/program/hooks.h"
#include "agent/program/workload.h"

namespace berth::agent {

/// Stays where it is in memory. Loop and workload outlive it.
class Clone {
 public:
  /// The result, and what the hooks have said.
  using Done = std::function<void(Result<void>, const FieldWriter& hooks)>;

  Clone(EventLoop& loop, Workload& workload) : workload_(workload), hooks_(loop) {}

  /// `done` is called once, unless an error is returned. `payload`: the fields, as they came.
  /// Whatever fails leaves the workload frozen.
  Result<void> begin(Bytes payload, Done done);
  /// The same identity, and whatever else can be done while the workload stays frozen; again and
  /// again. The port to try. `precondition` where the workload runs, `in_use` while begin() does.
  Result<std::uint16_t> rehearse(const Fields& fields);
  bool is_running() const { return done_ != nullptr; }
  bool reaped(pid_t pid, int status) { return hooks_.reaped(pid, status); }

 private:
  void run_hooks();
  void finish(Result<void> result);

  Workload& workload_;
  Hooks hooks_;
  std::vector<std::byte> payload_;
  Done done_;
};

}  // namespace berth::agent
