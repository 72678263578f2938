#include "agent/program/pump.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include <sys/epoll.h>
#include <unistd.h>

namespace berth::agent {

Pump::Pump(EventLoop& loop, Session& session, std::uint32_t stream, Fd fd, Direction direction)
    : loop_(loop), session_(session), stream_(stream), fd_(std::move(fd)), direction_(direction) {
  update();
}

void Pump::close() {
  if (watched_ >= 0) loop_.forget(fd_.get());
  watched_ = -1;
  fd_.reset();
}

void Pump::update() {
  Stream* stream = session_.find(stream_);
  if (!fd_ || stream == nullptr) return;
  std::uint32_t events = 0;
  // A pipe that is only written to is always watched: that nobody reads it any more is said anyway.
  bool is_wanted = direction_ == Direction::to_process;
  if (stream->out && stream->out->room() > 0) events |= EPOLLIN;
  if (stream->in) {
    if (!stream->in->readable().empty()) events |= EPOLLOUT;
    if (direction_ == Direction::to_process && stream->in->is_at_end()) return close();
  }
  is_wanted = is_wanted || events != 0;
  if (!is_wanted) {
    // A hangup is reported to whoever watches, room or not.
    if (watched_ >= 0) loop_.forget(fd_.get());
    watched_ = -1;
  } else if (watched_ < 0) {
    loop_.watch(fd_.get(), events, [this](std::uint32_t ready) { move(ready); });
    watched_ = events;
  } else if (watched_ != events) {
    loop_.change(fd_.get(), events);
    watched_ = events;
  }
}

void Pump::move(std::uint32_t events) {
  Stream* stream = session_.find(stream_);
  if (stream == nullptr) return close();
  if (stream->in && (events & (EPOLLOUT | EPOLLERR)) != 0) write_to_process(*stream->in, events);
  if (fd_ && stream->out && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
    read_from_process(*stream->out);
  }
  update();
}

void Pump::read_from_process(OutgoingStream& out) {
  std::array<std::byte, data_max> buffer;
  while (out.room() > 0) {
    const std::size_t wanted = std::min(buffer.size(), out.room());
    const ssize_t count = ::read(fd_.get(), buffer.data(), wanted);
    if (count > 0) {
      out.add(Bytes(buffer).first(static_cast<std::size_t>(count)));
      // A stream that nobody wants takes everything: others get their turn.
      if (out.is_stopped()) return;
      continue;
    }
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    // The end; of a terminal it is EIO.
    out.finish();
    return close();
  }
}

void Pump::write_to_process(IncomingStream& in, std::uint32_t events) {
  while (!in.readable().empty()) {
    const Bytes bytes = in.readable();
    const ssize_t count = ::write(fd_.get(), bytes.data(), bytes.size());
    if (count > 0) {
      in.consume(static_cast<std::size_t>(count));
      continue;
    }
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    in.stop();
    break;
  }
  if (direction_ != Direction::to_process) return;
  if ((events & EPOLLERR) != 0) in.stop();
  if (in.is_stopped()) close();
}

}  // namespace berth::agent
