// The ports that a container publishes: listeners of the host's, whose connections are carried to
// the guest over its agent's port, one stream each. So they need no network of QEMU's, and live
// through what happens to it.
//
// On one loop. A connection that is slow holds up nothing but itself. One that comes while the
// guest cannot be asked (it boots, it goes on after a pause) waits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/socket.h"
#include "container/agent_link.h"
#include "container/container_record.h"

namespace berth::container {

constexpr std::size_t published_connections_max = 256;  // of one container

class PublishedPorts {
 public:
  /// The link of this moment; nothing while the guest cannot be asked.
  using Link = std::function<std::shared_ptr<AgentLink>()>;
  using Wanted = std::function<void()>;
  /// `wanted` is called whenever a connection has something for the guest; `answered` when the
  /// guest's answer has been passed on.
  PublishedPorts(UringLoop& loop, Link link, Wanted wanted, Wanted answered);
  PublishedPorts(const PublishedPorts&) = delete;
  PublishedPorts& operator=(const PublishedPorts&) = delete;
  ~PublishedPorts();

  /// All of them or none: `in_use` for one that somebody has. Accepts connections from now on.
  /// `listening`: sockets that listen at these ports already, in their order; or none.
  Result<void> open(const std::vector<PublishedPort>& ports, std::vector<Fd> listening = {});
  /// The listening sockets, in the order of ports().
  std::vector<int> descriptors() const;
  /// Where they really are: a host port of 0 was chosen.
  const std::vector<PublishedPort>& ports() const { return ports_; }
  /// A number that no stream has which is none of a process's.
  std::uint32_t next_stream();
  /// The guest can be asked again, or something else about that has changed.
  void wake_up() { link_changed_.notify_all(); }
  /// Ends them, and their connections.
  Task<> close();

 private:
  class Connection;

  Task<> accept(SocketListener& listener, std::uint16_t guest_port);
  Task<> carry(std::unique_ptr<berth::Stream> socket, std::uint16_t guest_port);

  UringLoop& loop_;
  const Link link_;
  const Wanted wanted_;
  const Wanted answered_;
  std::vector<PublishedPort> ports_;
  std::vector<std::unique_ptr<SocketListener>> listeners_;
  std::vector<Connection*> connections_;
  Event link_changed_;
  Gate tasks_;
  std::uint32_t last_stream_ = 0;
  bool closing_ = false;
};

}  // namespace berth::container
