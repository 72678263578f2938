#include "agent/program/network.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>

#include "agent/program/small_files.h"
#include "base/fd.h"

namespace berth::agent {
namespace {

constexpr int default_routes_max = 16;  // of an interface

Result<ifreq> request_for(const std::string& name) {
  ifreq request{};
  if (name.empty() || name.size() >= IFNAMSIZ) {
    return failure(ErrorKind::invalid_argument, "'" + name + "' is not the name of an interface");
  }
  std::memcpy(request.ifr_name, name.data(), name.size());
  return request;
}

Result<in_addr> parse_address(const std::string& text) {
  in_addr address{};
  if (::inet_pton(AF_INET, text.c_str(), &address) != 1) {
    return failure(ErrorKind::invalid_argument, "'" + text + "' is not an IPv4 address");
  }
  return address;
}

sockaddr as_socket_address(in_addr address) {
  sockaddr_in full{};
  full.sin_family = AF_INET;
  full.sin_addr = address;
  sockaddr generic{};
  std::memcpy(&generic, &full, sizeof full);
  return generic;
}

template <typename Request>
Result<void> call(const Fd& socket, unsigned long what, Request& request, const char* doing) {
  if (::ioctl(socket.get(), what, &request) == 0) return {};
  return errno_failure(errno, std::string("cannot ") + doing);
}

Result<Fd> open_socket() {
  Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return errno_failure(errno, "cannot make a socket");
  return socket;
}

Result<ifreq> flags_of(const Fd& socket, const std::string& name) {
  ifreq request = TRY(request_for(name));
  TRY(call(socket, SIOCGIFFLAGS, request, "find the interface"));
  return request;
}

Result<void> set_flag_up(const Fd& socket, const std::string& name, bool up) {
  ifreq request = TRY(flags_of(socket, name));
  request.ifr_flags =
      static_cast<short>(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
  return call(socket, SIOCSIFFLAGS, request, "change the interface");
}

Result<void> set_hardware_address(const Fd& socket, const InterfaceSettings& settings) {
  ifreq request = TRY(request_for(settings.name));
  unsigned b[6];
  int used = 0;
  if (std::sscanf(settings.hardware_address.c_str(), "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1],
                  &b[2], &b[3], &b[4], &b[5], &used) != 6 ||
      static_cast<std::size_t>(used) != settings.hardware_address.size()) {
    return failure(ErrorKind::invalid_argument,
                   "'" + settings.hardware_address + "' is not a hardware address");
  }
  std::array<char, 6> wanted{};
  std::ranges::copy(b, wanted.begin());
  // Said again it must not take the interface down, and its routes with it.
  TRY(call(socket, SIOCGIFHWADDR, request, "look at the hardware address"));
  if (std::memcmp(request.ifr_hwaddr.sa_data, wanted.data(), wanted.size()) == 0) return {};
  request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  std::memcpy(request.ifr_hwaddr.sa_data, wanted.data(), wanted.size());
  // virtio's can be changed while it is up, which saves a clone the time that down and up take.
  if (::ioctl(socket.get(), SIOCSIFHWADDR, &request) == 0) return {};
  TRY(set_flag_up(socket, settings.name, false));
  return call(socket, SIOCSIFHWADDR, request, "set the hardware address");
}

Result<void> set_address(const Fd& socket, const InterfaceSettings& settings) {
  const std::size_t slash = settings.address.find('/');
  const std::string bits_text =
      slash == std::string::npos ? "32" : settings.address.substr(slash + 1);
  unsigned bits = 0;
  const char* end = bits_text.data() + bits_text.size();
  if (const auto parsed = std::from_chars(bits_text.data(), end, bits);
      parsed.ec != std::errc{} || parsed.ptr != end || bits > 32) {
    return failure(ErrorKind::invalid_argument, "'" + settings.address + "' has no good prefix");
  }
  ifreq request = TRY(request_for(settings.name));
  request.ifr_addr = as_socket_address(TRY(parse_address(settings.address.substr(0, slash))));
  TRY(call(socket, SIOCSIFADDR, request, "set the address"));
  const std::uint32_t mask = bits == 0 ? 0 : ~std::uint32_t{0} << (32 - bits);
  request.ifr_netmask = as_socket_address({.s_addr = htonl(mask)});
  return call(socket, SIOCSIFNETMASK, request, "set the network mask");
}

Result<void> set_gateway(const Fd& socket, const InterfaceSettings& settings) {
  rtentry route{};
  route.rt_dst = as_socket_address({.s_addr = INADDR_ANY});
  route.rt_genmask = as_socket_address({.s_addr = INADDR_ANY});
  route.rt_gateway = as_socket_address(TRY(parse_address(settings.gateway)));
  route.rt_flags = RTF_UP | RTF_GATEWAY;
  std::string device = settings.name;
  route.rt_dev = device.data();
  if (::ioctl(socket.get(), SIOCADDRT, &route) != 0) {
    if (errno == EEXIST) return {};  // this very route is there already
    return errno_failure(errno, "cannot set the default route");
  }
  // It is a good one, and those of before go. The kernel names none of them: all go, and it comes
  // back.
  rtentry any = route;
  any.rt_gateway = {};
  any.rt_flags = RTF_UP;
  int left = default_routes_max;
  while (left > 0 && ::ioctl(socket.get(), SIOCDELRT, &any) == 0) --left;
  return call(socket, SIOCADDRT, route, "set the default route");
}

}  // namespace

Result<void> set_interface_up(const std::string& name) {
  const Fd socket = TRY(open_socket());
  return set_flag_up(socket, name, true);
}

Result<void> set_interface(const InterfaceSettings& settings) {
  const Fd socket = TRY(open_socket());
  // There is nobody beside it on its network who could have its IPv6 address (RFC 4862, 5.4), and
  // clones of what asks for a second would go on asking.
  if (const ifreq now = TRY(flags_of(socket, settings.name)); (now.ifr_flags & IFF_UP) == 0)
    (void)write_setting("/proc/sys/net/ipv6/conf/" + settings.name + "/accept_dad", "0");
  if (!settings.hardware_address.empty()) TRY(set_hardware_address(socket, settings));
  TRY(set_flag_up(socket, settings.name, true));
  if (!settings.address.empty()) TRY(set_address(socket, settings));
  if (!settings.gateway.empty()) TRY(set_gateway(socket, settings));
  return {};
}

}  // namespace berth::agent
