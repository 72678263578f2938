// SimNetwork: listeners and connections between simulated processes, by address. Connections reach
// a listener in an order that the seed chooses. Outlives its listeners; links outlive it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async/stream.h"
#include "testing/sim_stream.h"

namespace berth {

class SimNetwork {
 public:
  explicit SimNetwork(SimLinkOptions options = {}) : options_(options) {}
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;
  ~SimNetwork();

  /// in_use if somebody listens there.
  Result<std::unique_ptr<Listener>> listen(SimLoop& loop, const std::string& address);
  /// `disconnected` if nobody listens there, or if the network is down.
  Task<Result<std::unique_ptr<Stream>>> connect(SimLoop& loop, std::string address);

  /// Cuts every connection that there is.
  void cut();
  void stall(Duration duration);
  /// While down, connecting fails; what is connected stays so.
  void set_down(bool down) { down_ = down; }

 private:
  friend class SimListener;
  class ListenerState;
  std::vector<std::shared_ptr<SimLink>> live_links();

  SimLinkOptions options_;
  bool down_ = false;
  std::map<std::string, std::shared_ptr<ListenerState>> listeners_;
  std::vector<std::weak_ptr<SimLink>> links_;
};

}  // namespace berth
