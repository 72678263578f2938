// Addresses of sockets, in the kernel's form. Used by socket.cc, and by what has no loop.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sys/socket.h>

#include "async/socket.h"
#include "base/fd.h"
#include "base/result.h"

namespace berth {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = sizeof(sockaddr_storage);
  Fd directory;  // keeps a long unix path reachable

  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

/// Of any length that the file system allows.
Result<SocketAddress> unix_address(const std::string& path);

/// A socket that blocks, connected to who listens there. `errno`'s kind otherwise: `permission`,
/// `not_found` where there is no socket, `disconnected` where nobody listens any more. Blocking.
Result<Fd> connect_unix(const std::string& path);

enum class ResolveFor : std::uint8_t { connecting, listening };

/// Every address of the host, in the order of the system's preference. Blocking.
Result<std::vector<SocketAddress>> tcp_addresses(const TcpAddress& address, ResolveFor purpose);

/// "unix", "192.0.2.1:40112", "[2001:db8::1]:40112".
std::string describe(const SocketAddress& address);

/// 0 unless it has one.
std::uint16_t port_of(const SocketAddress& address);

}  // namespace berth
