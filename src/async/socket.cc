#include "async/socket.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/socket_address.h"
#include "async/uring_call.h"

namespace berth {
namespace {

constexpr int listen_backlog = 128;
constexpr std::size_t parts_per_call_max = 16;
// A peer that sends without a pause must not keep the loop from its other work.
constexpr unsigned reads_in_a_row_max = 16;
// A TCP peer that has vanished is noticed after a minute.
constexpr int keepalive_idle_s = 30;
constexpr int keepalive_interval_s = 10;
constexpr int keepalive_probes = 3;

void set_option(const Fd& fd, int level, int name, int value) {
  // An option only makes things better; a socket that refuses one still works.
  static_cast<void>(::setsockopt(fd.get(), level, name, &value, sizeof value));
}

void tune(const Fd& fd, int family) {
  if (family == AF_UNIX) return;
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, keepalive_idle_s);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, keepalive_interval_s);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, keepalive_probes);
}

bool means_disconnected(int errno_value) {
  switch (errno_value) {
    case ECONNREFUSED:
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
    case ENOTCONN:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETUNREACH:
    case ENETDOWN: return true;
    default: return false;
  }
}

/// What is left to send of a list of parts.
class Unsent {
 public:
  explicit Unsent(std::span<const Bytes> parts) : parts_(parts) { skip_empty(); }

  bool empty() const { return parts_.empty(); }

  /// The next parts, as many as one call takes.
  msghdr& message() {
    std::size_t count = 0;
    for (const Bytes part : parts_.first(std::min(parts_.size(), vectors_.size()))) {
      const std::size_t skip = count == 0 ? sent_of_first_ : 0;
      vectors_[count++] = {.iov_base = const_cast<std::byte*>(part.data()) + skip,
                           .iov_len = part.size() - skip};
    }
    message_.msg_iov = vectors_.data();
    message_.msg_iovlen = count;
    return message_;
  }

  void advance(std::size_t sent) {
    while (sent > 0) {
      const std::size_t step = std::min(sent, parts_.front().size() - sent_of_first_);
      sent -= step;
      sent_of_first_ += step;
      skip_empty();
    }
  }

 private:
  void skip_empty() {
    while (!parts_.empty() && sent_of_first_ == parts_.front().size()) {
      parts_ = parts_.subspan(1);
      sent_of_first_ = 0;
    }
  }

  std::span<const Bytes> parts_;
  std::size_t sent_of_first_ = 0;
  std::array<iovec, parts_per_call_max> vectors_;
  msghdr message_{};
};

}  // namespace

Result<std::unique_ptr<SocketStream>> SocketStream::adopt(UringLoop& loop, Fd connected) {
  SocketAddress address;
  if (::getpeername(connected.get(), address.get(), &address.length) != 0) {
    return errno_failure(errno, "cannot use what is not a connected socket");
  }
  // The ring would not wait on a socket that says not to.
  const int flags = ::fcntl(connected.get(), F_GETFL);
  if (flags < 0 || ::fcntl(connected.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return errno_failure(errno, "cannot change the flags of a socket");
  }
  tune(connected, address.family());
  return std::unique_ptr<SocketStream>(
      new SocketStream(loop, std::move(connected), describe(address)));
}

SocketStream::~SocketStream() { CHECK(under_way_ == 0); }

void SocketStream::shutdown() {
  shut_down_ = true;
  static_cast<void>(::shutdown(fd_.get(), SHUT_RDWR));  // fails when the peer was first
}

Task<Result<void>> SocketStream::finish_writing() {
  if (::shutdown(fd_.get(), SHUT_WR) != 0) co_return failed("end the connection to", errno);
  co_return Result<void>{};
}

std::unexpected<Error> SocketStream::failed(const char* what, int errno_value) const {
  if (shut_down_)
    return failure(ErrorKind::disconnected,
                   fmt::format("the connection to {} was shut down", peer_));
  const std::string context = fmt::format("cannot {} {}", what, peer_);
  if (!means_disconnected(errno_value)) return errno_failure(errno_value, context);
  return failure(ErrorKind::disconnected,
                 fmt::format("{}: {}", context, std::strerror(errno_value)));
}

Task<Result<std::size_t>> SocketStream::read_some(MutableBytes into) {
  if (into.empty()) co_return 0;
  ++under_way_;
  if (reads_in_a_row_ >= reads_in_a_row_max) {
    reads_in_a_row_ = 0;
    co_await loop_.yield();
  }
  ssize_t got = -EAGAIN;
  if (more_is_likely_ && !shut_down_) {
    ++reads_in_a_row_;
    got = ::recv(fd_.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (got < 0) got = -errno;
  }
  while ((got == -EAGAIN || got == -EINTR) && !shut_down_) {
    reads_in_a_row_ = 0;
    UringCall receive(
        loop_,
        [this, into](io_uring_sqe& entry) {
          ::io_uring_prep_recv(&entry, fd_.get(), into.data(), into.size(), 0);
          entry.ioprio |= IORING_RECVSEND_POLL_FIRST;
        },
        UringTurn::urgent);
    got = co_await receive;
  }
  --under_way_;
  more_is_likely_ = got == static_cast<ssize_t>(into.size());
  if (got < 0 || shut_down_) co_return failed("read from", static_cast<int>(-got));
  co_return static_cast<std::size_t>(got);
}

Task<Result<void>> SocketStream::write_all(std::span<const Bytes> parts) {
  ++under_way_;
  Unsent unsent(parts);
  ssize_t sent = 0;
  while (!unsent.empty() && !shut_down_) {
    msghdr& message = unsent.message();
    sent = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) sent = -errno;
    if (sent == -EAGAIN) {
      UringCall send(loop_, [this, &message](io_uring_sqe& entry) {
        ::io_uring_prep_sendmsg(&entry, fd_.get(), &message, MSG_NOSIGNAL | MSG_WAITALL);
        entry.ioprio |= IORING_RECVSEND_POLL_FIRST;
      });
      sent = co_await send;
    }
    if (sent < 0 && sent != -EINTR && sent != -EAGAIN) break;
    if (sent > 0) unsent.advance(static_cast<std::size_t>(sent));
  }
  --under_way_;
  if (!unsent.empty()) co_return failed("write to", static_cast<int>(-sent));
  co_return Result<void>{};
}

Result<std::unique_ptr<SocketListener>> SocketListener::adopt(UringLoop& loop, Fd listening) {
  int listens = 0;
  socklen_t length = sizeof listens;
  if (::getsockopt(listening.get(), SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 ||
      listens == 0) {
    return failure(ErrorKind::invalid_argument,
                   "cannot accept connections on what is not a listening socket");
  }
  return std::unique_ptr<SocketListener>(new SocketListener(loop, std::move(listening)));
}

namespace {

/// Whether what lies at the path is a socket left over from a process that is gone.
bool is_abandoned(const std::string& path, const SocketAddress& address) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return probe && ::connect(probe.get(), address.get(), address.length) != 0 &&
         errno == ECONNREFUSED;
}

Result<Fd> listening_socket(const SocketAddress& address, const std::string& name) {
  Fd fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_failure(errno, fmt::format("cannot create a socket for {}", name));
  if (address.family() == AF_UNIX) {
    static_cast<void>(::fchmod(fd.get(), 0600));  // the mode of the file that bind() makes
  } else {
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  }
  if (::bind(fd.get(), address.get(), address.length) != 0 ||
      ::listen(fd.get(), listen_backlog) != 0) {
    return errno_failure(errno, fmt::format("cannot listen on {}", name));
  }
  return fd;
}

}  // namespace

Result<std::unique_ptr<SocketListener>> SocketListener::listen_unix(UringLoop& loop,
                                                                    const std::string& path) {
  const SocketAddress address = TRY(unix_address(path));
  Result<Fd> fd = listening_socket(address, path);
  if (!fd && fd.error().errno_value() == EADDRINUSE && is_abandoned(path, address)) {
    if (::unlink(path.c_str()) != 0)
      return errno_failure(errno, fmt::format("cannot replace the socket '{}'", path));
    fd = listening_socket(address, path);
  }
  return adopt(loop, TRY(std::move(fd)));
}

Result<std::unique_ptr<SocketListener>> SocketListener::listen_tcp(UringLoop& loop,
                                                                   const TcpAddress& address) {
  const auto addresses = TRY(tcp_addresses(address, ResolveFor::listening));
  return adopt(loop, TRY(listening_socket(addresses.front(), address.to_string())));
}

SocketListener::~SocketListener() { CHECK(pending_ == nullptr); }

std::uint16_t SocketListener::port() const {
  SocketAddress address;
  return ::getsockname(fd_.get(), address.get(), &address.length) == 0 ? port_of(address)
                                                                       : std::uint16_t{0};
}

void SocketListener::close() {
  closed_ = true;
  // Not shutdown(2): that would end the socket for every process that has it.
  if (pending_ != nullptr) loop_.cancel(*pending_);
}

Task<Result<std::unique_ptr<Stream>>> SocketListener::accept() {
  CHECK(pending_ == nullptr);
  while (!closed_) {
    UringCall accept(loop_, [this](io_uring_sqe& entry) {
      ::io_uring_prep_accept(&entry, fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    });
    pending_ = &accept;
    int result = co_await accept;
    if (result == -EAGAIN && !closed_) {
      // Somebody has set O_NONBLOCK on the socket, which may be theirs as well: then accept does
      // not wait.
      UringCall poll(loop_, [this](io_uring_sqe& entry) {
        ::io_uring_prep_poll_add(&entry, fd_.get(), POLLIN);
      });
      pending_ = &poll;
      co_await poll;
    }
    pending_ = nullptr;
    Fd connection(result);
    if (closed_) break;
    if (connection) {
      auto stream = SocketStream::adopt(loop_, std::move(connection));
      if (stream) co_return std::move(*stream);
      continue;
    }
    if (result != -EAGAIN && result != -EINTR && result != -ECONNABORTED) {
      co_return errno_failure(-result, "cannot accept a connection");
    }
  }
  co_return failure(ErrorKind::cancelled, "the listener was closed");
}

namespace {

Task<Result<std::unique_ptr<Stream>>> connect_to(UringLoop& loop, const SocketAddress& address,
                                                 std::string name, Duration timeout) {
  Fd fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) co_return errno_failure(errno, fmt::format("cannot create a socket for {}", name));
  UringCall connect(loop, [&](io_uring_sqe& entry) {
    ::io_uring_prep_connect(&entry, fd.get(), address.get(), address.length);
  });
  Deadline deadline(loop, timeout, [&] { loop.cancel(connect); });
  const int result = co_await connect;
  co_await deadline.stop();
  if (result < 0 && deadline.expired()) {
    co_return failure(ErrorKind::timed_out, fmt::format("no answer from {} within {} ms", name,
                                                        timeout / std::chrono::milliseconds(1)));
  }
  if (result < 0) {
    const std::string context = fmt::format("cannot connect to {}", name);
    if (!means_disconnected(-result)) co_return errno_failure(-result, context);
    co_return failure(ErrorKind::disconnected,
                      fmt::format("{}: {}", context, std::strerror(-result)));
  }
  co_return CO_TRY(SocketStream::adopt(loop, std::move(fd)));
}

}  // namespace

Task<Result<std::unique_ptr<Stream>>> connect_unix(UringLoop& loop, std::string path,
                                                   Duration timeout) {
  const SocketAddress address = CO_TRY(unix_address(path));
  co_return co_await connect_to(loop, address, path, timeout);
}

Task<Result<std::unique_ptr<Stream>>> connect_tcp(UringLoop& loop, TcpAddress address,
                                                  Duration timeout) {
  const Instant deadline = loop.now() + timeout;
  const auto addresses = CO_TRY(
      co_await offload(loop, [&] { return tcp_addresses(address, ResolveFor::connecting); }));
  for (const SocketAddress& candidate : addresses) {
    const bool last = &candidate == &addresses.back();
    auto stream = co_await connect_to(loop, candidate, address.to_string(), deadline - loop.now());
    if (stream || last || stream.error().kind() == ErrorKind::timed_out) co_return stream;
  }
  co_return failure(ErrorKind::not_found, fmt::format("'{}' has no address", address.host));
}

}  // namespace berth
