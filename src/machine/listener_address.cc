#include "machine/listener_address.h"

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <fmt/format.h>

namespace berth::machine {
namespace {

Result<std::string> numeric_host(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST];
  if (::getnameinfo(address, length, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) {
    return failure(ErrorKind::invalid_argument,
                   "a socket has an address that cannot be written down");
  }
  return std::string(host);
}

/// RFC 3986's unreserved characters stay, and so do `also`.
std::string percent_encoded(std::string_view text, std::string_view also) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~").contains(c) || also.contains(c);
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

}  // namespace

bool ListenerAddress::is_loopback() const {
  if (is_unix()) return true;
  in_addr v4{};
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6{};
  if (::inet_pton(AF_INET6, host.c_str(), &v6) != 1) return false;
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

Result<ListenerAddress> address_of(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  int listens = 0;
  socklen_t listens_length = sizeof listens;
  if (::getsockname(fd, address, &length) != 0 ||
      ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_length) != 0) {
    return errno_failure(errno, fmt::format("the descriptor {} is no socket", fd));
  }
  if (listens == 0) {
    return failure(ErrorKind::invalid_argument, fmt::format("the socket {} does not listen", fd));
  }
  if (storage.ss_family == AF_UNIX) {
    const auto& unix_address = reinterpret_cast<const sockaddr_un&>(storage);
    const std::size_t path_max = length - offsetof(sockaddr_un, sun_path);
    std::string path(unix_address.sun_path, ::strnlen(unix_address.sun_path, path_max));
    if (!path.empty()) return ListenerAddress{.unix_path = std::move(path)};
  }
  if (storage.ss_family == AF_INET || storage.ss_family == AF_INET6) {
    const in_port_t port = storage.ss_family == AF_INET
                               ? reinterpret_cast<const sockaddr_in&>(storage).sin_port
                               : reinterpret_cast<const sockaddr_in6&>(storage).sin6_port;
    return ListenerAddress{.host = TRY(numeric_host(address, length)), .port = ntohs(port)};
  }
  return failure(ErrorKind::invalid_argument,
                 fmt::format("the socket {} has no path and no port", fd));
}

bool is_at(const ListenerAddress& address, const std::string& host, std::uint16_t port) {
  if (address.is_unix() || address.port != port || port == 0) return false;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.empty() ? nullptr : host.c_str(), "0", &hints, &found) != 0) return false;
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(found, &::freeaddrinfo);
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const auto numeric = numeric_host(entry->ai_addr, entry->ai_addrlen);
    if (numeric && *numeric == address.host) return true;
  }
  return false;
}

std::string nbd_uri(const ListenerAddress& address, const std::string& host,
                    const std::string& export_name, bool tls) {
  const char* scheme = tls ? "nbds" : "nbd";
  const std::string name = percent_encoded(export_name, "@");
  if (address.is_unix()) {
    return fmt::format("{}+unix:///{}?socket={}", scheme, name,
                       percent_encoded(address.unix_path, "/"));
  }
  const std::string& shown = host.empty() ? address.host : host;
  const bool v6 = shown.contains(':');
  return fmt::format("{}://{}{}{}:{}/{}", scheme, v6 ? "[" : "", shown, v6 ? "]" : "", address.port,
                     name);
}

}  // namespace berth::machine
