#include "machine/vm/host_ports.h"

#include <cerrno>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fmt/format.h>

#include "base/fd.h"

namespace berth::machine {
namespace {

Result<void> check_free(const PortForward& forward) {
  const bool tcp = forward.protocol == PortForward::Protocol::tcp;
  sockaddr_in address{
      .sin_family = AF_INET, .sin_port = htons(forward.host_port), .sin_addr = {}, .sin_zero = {}};
  if (::inet_pton(AF_INET, forward.host_address.c_str(), &address.sin_addr) != 1)
    return {};  // QEMU's to judge
  const Fd socket(::socket(AF_INET, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0));
  const int one = 1;
  if (tcp) ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return {};
  const int error = errno;
  const std::string where =
      fmt::format("{} {}:{}", tcp ? "tcp" : "udp", forward.host_address, forward.host_port);
  if (error == EADDRINUSE) {
    return failure(
        ErrorKind::in_use,
        fmt::format("the port {} of this host is in use: somebody else listens there", where));
  }
  return errno_failure(error, fmt::format("cannot listen on {}", where));
}

}  // namespace

Result<void> check_host_ports(const MachineSpecification& specification) {
  for (const NetworkSpecification& network : specification.networks)
    for (const PortForward& forward : network.forwards) TRY(check_free(forward));
  return {};
}

}  // namespace berth::machine
