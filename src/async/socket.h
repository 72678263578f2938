// The real Stream and Listener: unix and TCP sockets on a UringLoop.
//
// A write first tries the system call and waits in the ring only when that would block; a read does
// so after one that filled its buffer, since more is there then. Bytes go to and from the caller's
// memory. A stream or listener goes when nothing is under way on it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "async/stream.h"
#include "async/uring_loop.h"
#include "base/fd.h"

namespace berth {

struct TcpAddress {
  std::string host;  // a name, an IPv4 or an IPv6 address (without brackets)
  std::uint16_t port = 0;

  /// "host:port", "192.0.2.1:10809", "[2001:db8::1]:10809".
  static Result<TcpAddress> parse(const std::string& text);
  std::string to_string() const;
};

class SocketStream final : public Stream {
 public:
  /// A connected stream socket: one of a pair, or one that somebody else accepted.
  static Result<std::unique_ptr<SocketStream>> adopt(UringLoop& loop, Fd connected);
  ~SocketStream() override;

  Task<Result<std::size_t>> read_some(MutableBytes into) override;
  Task<Result<void>> write_all(std::span<const Bytes> parts) override;
  Task<Result<void>> finish_writing() override;
  void shutdown() override;
  const std::string& peer() const override { return peer_; }

 private:
  friend class SocketListener;
  SocketStream(UringLoop& loop, Fd fd, std::string peer)
      : loop_(loop), fd_(std::move(fd)), peer_(std::move(peer)) {}
  std::unexpected<Error> failed(const char* what, int errno_value) const;

  UringLoop& loop_;
  Fd fd_;
  std::string peer_;
  unsigned reads_in_a_row_ = 0;  // that did not wait
  bool more_is_likely_ = false;
  unsigned under_way_ = 0;
  bool shut_down_ = false;
};

class SocketListener final : public Listener {
 public:
  /// A socket that listens already: inherited, or passed from another process, which may go on
  /// using it.
  static Result<std::unique_ptr<SocketListener>> adopt(UringLoop& loop, Fd listening);
  /// At a path that is free, or held by a socket that nobody listens on any more (in_use
  /// otherwise); mode 0600. The path stays when the listener goes: the socket may live on in
  /// another process.
  static Result<std::unique_ptr<SocketListener>> listen_unix(UringLoop& loop,
                                                             const std::string& path);
  /// Port 0 takes a free one. Blocking where `host` is a name.
  static Result<std::unique_ptr<SocketListener>> listen_tcp(UringLoop& loop,
                                                            const TcpAddress& address);
  ~SocketListener() override;

  /// One at a time. Connections that vanish before they are taken are skipped.
  Task<Result<std::unique_ptr<Stream>>> accept() override;
  void close() override;

  /// The listening socket, to pass it on; stays the listener's.
  int fd() const { return fd_.get(); }
  /// Of a TCP listener, else 0.
  std::uint16_t port() const;

 private:
  SocketListener(UringLoop& loop, Fd fd) : loop_(loop), fd_(std::move(fd)) {}

  UringLoop& loop_;
  Fd fd_;
  UringOperation* pending_ = nullptr;
  bool closed_ = false;
};

// Both: `timed_out` after `timeout`, `disconnected` where nobody listens. A name is resolved on the
// pool, and its addresses are tried in order.
Task<Result<std::unique_ptr<Stream>>> connect_unix(UringLoop& loop, std::string path,
                                                   Duration timeout);
Task<Result<std::unique_ptr<Stream>>> connect_tcp(UringLoop& loop, TcpAddress address,
                                                  Duration timeout);

}  // namespace berth
