// The published ports of containers that are hibernated: listening sockets, at which nobody
// accepts. Who connects waits there until the container has been resumed for him, and then its
// keeper has the socket.
//
// On the control plane's thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "container/container_record.h"
#include "control/async.h"

namespace berth::control {

class HibernatedPorts {
 public:
  /// Somebody has connected to a port of this container. Not called again for it until watch().
  using Wanted = std::function<void(std::string name)>;

  explicit HibernatedPorts(Executor executor) : executor_(std::move(executor)) {}
  void on_wanted(Wanted wanted) { wanted_ = std::move(wanted); }

  /// Sockets that listen at these ports, all of them; `in_use` for one that somebody has.
  static Result<std::vector<Fd>> listen(const std::vector<container::PublishedPort>& ports);

  /// The container's from now on, in place of those that it had.
  void watch(const std::string& name, std::vector<Fd> listening);
  /// They could not be served: those who wait are hung up on, and the next ones are heard of again.
  void refuse(const std::string& name);
  /// In the order of its ports; they stay ours.
  std::vector<int> descriptors(const std::string& name) const;
  void forget(const std::string& name) { watched_.erase(name); }
  void quit() { watched_.clear(); }

 private:
  struct Watched;
  void wait(const std::string& name, const std::shared_ptr<Watched>& watched);

  Executor executor_;
  Wanted wanted_;
  std::map<std::string, std::shared_ptr<Watched>> watched_;
};

}  // namespace berth::control
