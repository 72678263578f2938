// What happens to what a keeper keeps: told to every client that is connected, and the last of it
// to those that come later, in `hello`.
//
// On the keeper's loop.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "machine/control_server.h"

namespace berth::machine {

class KeeperEvents {
 public:
  /// Server and clock outlive it.
  KeeperEvents(ControlServer& server, const Clock& clock, std::size_t remembered_max)
      : server_(server), clock_(clock), remembered_max_(remembered_max) {}

  void tell(const char* event, std::string message) {
    server_.send_event(event, message);
    if (past_.size() == remembered_max_) past_.pop_front();
    past_.push_back({{"event", event},
                     {"message", std::move(message)},
                     {"at", format_time(clock_.wall_time())}});
  }
  /// The member `events` of the answer to `hello`.
  Json past() const { return std::vector<Json>(past_.begin(), past_.end()); }

 private:
  ControlServer& server_;
  const Clock& clock_;
  const std::size_t remembered_max_;
  std::deque<Json> past_;
};

}  // namespace berth::machine
