// Where a listening socket listens, and how clients write that down. Pure but for the questions to
// the kernel.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace berth::machine {

struct ListenerAddress {
  std::string unix_path;   // of a UNIX socket, else ""
  std::string host;        // of a TCP one: a numeric address
  std::uint16_t port = 0;  // of a TCP one

  bool is_unix() const { return !unix_path.empty(); }
  /// Only this machine's processes can connect.
  bool is_loopback() const;
  friend bool operator==(const ListenerAddress&, const ListenerAddress&) = default;
};

/// invalid_argument unless `fd` is a listening UNIX socket with a path, or a listening TCP one.
Result<ListenerAddress> address_of(int fd);

/// Whether a listener asked for as `host`:`port` may be the one at `address`. Port 0 is none in
/// particular. A name is resolved: blocking.
bool is_at(const ListenerAddress& address, const std::string& host, std::uint16_t port);

/// The NBD URI of an export (NBD project, doc/uri.md): nbd://HOST:PORT/EXPORT,
/// nbd+unix:///EXPORT?socket=PATH, and with TLS nbds. `host`, where it is not empty, is written in
/// place of the numeric address.
std::string nbd_uri(const ListenerAddress& address, const std::string& host,
                    const std::string& export_name, bool tls);

}  // namespace berth::machine
