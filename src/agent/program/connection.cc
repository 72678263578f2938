#include "agent/program/connection.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace berth::agent {
namespace {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

template <typename Family>
SocketAddress as_storage(const Family& family) {
  SocketAddress address{.size = sizeof family};
  std::memcpy(&address.storage, &family, sizeof family);
  return address;
}

Result<SocketAddress> parse(const ServiceAddress& where) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(where.port);
  if (::inet_pton(AF_INET, where.address.c_str(), &v4.sin_addr) == 1) return as_storage(v4);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(where.port);
  if (::inet_pton(AF_INET6, where.address.c_str(), &v6.sin6_addr) == 1) return as_storage(v6);
  return failure(ErrorKind::invalid_argument, "'" + where.address + "' is not an address");
}

std::string named(const ServiceAddress& where) {
  return "port " + std::to_string(where.port) + " of " + where.address;
}

}  // namespace

Result<void> Connection::start(std::chrono::milliseconds limit) {
  const SocketAddress address = TRY(parse(where_));
  fd_ = Fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd_) return errno_failure(errno, "cannot make a socket");
  const int on = 1;  // who sent the bytes has gathered them as it saw fit
  (void)::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  deadline_ = TRY(Timer::start(loop_, limit, [this] { finish_connecting(ETIMEDOUT); }));
  const auto* generic = reinterpret_cast<const sockaddr*>(&address.storage);
  if (::connect(fd_.get(), generic, address.size) != 0 && errno != EINPROGRESS) {
    return errno_failure(errno, "cannot connect to " + named(where_));
  }
  watch(EPOLLOUT);
  return {};
}

void Connection::finish_connecting(int error) {
  deadline_.reset();
  const Connected connected = std::exchange(connected_, nullptr);
  if (error != 0) {
    close();
    connected(errno_failure(error, "cannot connect to " + named(where_)));
    return;
  }
  connected({});
  update();
}

void Connection::update() {
  Stream* stream = session_.find(stream_);
  if (!fd_ || connected_ || stream == nullptr) return;
  if (stream->in->is_at_end() && !is_shut_) {
    ::shutdown(fd_.get(), SHUT_WR);
    is_shut_ = true;
  }
  const bool may_read = !stream->out->is_finished();
  // Both ways are over: what the service says to that is of no interest.
  if (is_shut_ && !may_read) return close();
  std::uint32_t events = 0;
  if (stream->out->room() > 0) events |= EPOLLIN;
  if (!stream->in->readable().empty()) events |= EPOLLOUT;
  watch(events);
}

void Connection::watch(std::uint32_t events) {
  // A hangup is reported to whoever watches, so without anything to do nobody does.
  if (events == 0 && watched_ != 0) loop_.forget(fd_.get());
  if (events != 0 && watched_ == 0) {
    loop_.watch(fd_.get(), events, [this](std::uint32_t ready) { move(ready); });
  } else if (events != 0 && watched_ != events) {
    loop_.change(fd_.get(), events);
  }
  watched_ = events;
}

void Connection::move(std::uint32_t events) {
  if (connected_) {
    int error = 0;
    socklen_t size = sizeof error;
    if (::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    return finish_connecting(error);
  }
  Stream* stream = session_.find(stream_);
  if (stream == nullptr) return close();
  if ((events & (EPOLLOUT | EPOLLERR)) != 0) write_to_service(*stream->in);
  if (fd_ && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) read_from_service(*stream->out);
  update();
}

void Connection::read_from_service(OutgoingStream& out) {
  std::array<std::byte, data_max> buffer;
  while (out.room() > 0) {
    const std::size_t wanted = std::min(buffer.size(), out.room());
    const ssize_t count = ::recv(fd_.get(), buffer.data(), wanted, 0);
    if (count == 0) return out.finish();
    if (count < 0) {
      if (errno != EAGAIN && errno != EINTR) fail(*session_.find(stream_), errno);
      return;
    }
    out.add(Bytes(buffer).first(static_cast<std::size_t>(count)));
    // A stream that nobody wants takes everything: others get their turn.
    if (out.is_stopped()) return;
  }
}

void Connection::write_to_service(IncomingStream& in) {
  while (!in.readable().empty()) {
    const Bytes bytes = in.readable();
    const ssize_t count = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0) {
      if (errno != EAGAIN && errno != EINTR) fail(*session_.find(stream_), errno);
      return;
    }
    in.consume(static_cast<std::size_t>(count));
  }
}

void Connection::fail(Stream& stream, int error) {
  FieldWriter event(EventKind::connection_failed);
  event.number(Tag::stream, stream_);
  write_error(event, Error::from_errno(error, "the connection to " + named(where_) + " failed"));
  session_.event(stream_, event);
  stream.in->stop();
  stream.out->finish();
  close();
}

bool Connection::is_over() const {
  if (connected_ || fd_) return false;
  const Stream* stream = session_.find(stream_);
  return stream == nullptr || (stream->out->is_over() && stream->in->is_over());
}

void Connection::abort() {
  if (!fd_) return;
  const linger reset{.l_onoff = 1, .l_linger = 0};
  (void)::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  close();
}

void Connection::close() {
  if (watched_ != 0) loop_.forget(fd_.get());
  watched_ = 0;
  deadline_.reset();
  fd_.reset();
}

}  // namespace berth::agent
