// Has containers paused that nobody uses, and the longest idle ones where the host runs short of
// memory, as parking_policy.h decides. Keepers know how idle a container is, and resume it when
// somebody wants something of it: that needs neither this object nor the daemon.
//
// On the control plane's thread. One container is paused at a time.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "control/async.h"
#include "control/containers.h"
#include "control/events.h"
#include "control/parking_policy.h"

namespace berth::control {

class Parking {
 public:
  Parking(Executor executor, ParkingConfiguration configuration, Containers& containers,
          EventLog& events);

  /// Looks at them from now on. After Containers::take_over().
  void begin();
  /// What is under way ends first.
  Async<void> quit();

 private:
  using Candidate = ParkingPolicy::Candidate;

  Async<void> go_on();
  Async<Duration> look();
  Async<std::vector<Candidate>> find_candidates(std::vector<container::ContainerRecord> records);
  Async<void> carry_out(ParkingPolicy::Decision decision);
  std::optional<double> pressure();

  Executor executor_;
  ParkingPolicy policy_;
  Containers& containers_;
  EventLog& events_;
  Wakeup changed_;
  bool pressure_fails_ = false;  // and that has been said
  bool is_on_ = false;
  bool quitting_ = false;
};

}  // namespace berth::control
