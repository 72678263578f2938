#include "async/socket_address.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <utility>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <fmt/format.h>

namespace berth {

Result<TcpAddress> TcpAddress::parse(const std::string& text) {
  const auto refuse = [&text] {
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("'{}' is not an address: write host:port, or [host]:port for IPv6", text));
  };
  const auto colon = text.rfind(':');
  if (colon == std::string::npos) return refuse();
  TcpAddress address;
  const char* end = text.data() + text.size();
  const auto [stop, code] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (code != std::errc{} || stop != end) return refuse();

  address.host = text.substr(0, colon);
  const bool bracketed = address.host.starts_with('[') && address.host.ends_with(']');
  if (bracketed) address.host = address.host.substr(1, address.host.size() - 2);
  if (address.host.empty() ||
      address.host.find_first_of(bracketed ? "[]" : "[]:") != std::string::npos)
    return refuse();
  return address;
}

std::string TcpAddress::to_string() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

Result<SocketAddress> unix_address(const std::string& path) {
  SocketAddress address;
  auto& name = reinterpret_cast<sockaddr_un&>(address.storage);
  name.sun_family = AF_UNIX;
  address.length = sizeof name;
  std::string reachable = path;
  if (path.size() >= sizeof name.sun_path) {
    const auto slash = path.rfind('/');
    const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    address.directory = Fd(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!address.directory)
      return errno_failure(errno, fmt::format("cannot reach the socket '{}'", path));
    reachable = fmt::format("/proc/self/fd/{}/{}", address.directory.get(), path.substr(slash + 1));
  }
  if (path.empty() || path.contains('\0') || reachable.size() >= sizeof name.sun_path) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not a path that a socket can have", path));
  }
  std::memcpy(name.sun_path, reachable.c_str(), reachable.size() + 1);
  return address;
}

Result<Fd> connect_unix(const std::string& path) {
  const SocketAddress address = TRY(unix_address(path));
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_failure(errno, "cannot create a socket");
  if (::connect(fd.get(), address.get(), address.length) != 0)
    return errno_failure(errno, fmt::format("cannot connect to '{}'", path));
  return fd;
}

Result<std::vector<SocketAddress>> tcp_addresses(const TcpAddress& address, ResolveFor purpose) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (purpose == ResolveFor::listening ? AI_PASSIVE : AI_ADDRCONFIG);
  addrinfo* found = nullptr;
  const int outcome =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (outcome != 0) {
    return failure(
        ErrorKind::not_found,
        fmt::format("cannot resolve '{}': {}", address.host,
                    outcome == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(outcome)));
  }
  const std::unique_ptr<addrinfo, decltype([](addrinfo* list) { ::freeaddrinfo(list); })> owner(
      found);
  std::vector<SocketAddress> addresses;
  for (; found != nullptr; found = found->ai_next) {
    SocketAddress& entry = addresses.emplace_back();
    std::memcpy(&entry.storage, found->ai_addr, found->ai_addrlen);
    entry.length = found->ai_addrlen;
  }
  return addresses;
}

std::string describe(const SocketAddress& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.family() == AF_INET) {
    const auto& version_4 = reinterpret_cast<const sockaddr_in&>(address.storage);
    ::inet_ntop(AF_INET, &version_4.sin_addr, text.data(), text.size());
    return fmt::format("{}:{}", text.data(), port_of(address));
  }
  if (address.family() == AF_INET6) {
    const auto& version_6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
    ::inet_ntop(AF_INET6, &version_6.sin6_addr, text.data(), text.size());
    return fmt::format("[{}]:{}", text.data(), port_of(address));
  }
  return "unix";
}

std::uint16_t port_of(const SocketAddress& address) {
  if (address.family() == AF_INET)
    return ntohs(reinterpret_cast<const sockaddr_in&>(address.storage).sin_port);
  if (address.family() == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_port);
  return 0;
}

}  // namespace berth
