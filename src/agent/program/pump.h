// Moves bytes between a descriptor of a process and its stream of the session, when either is
// ready.
#pragma once

#include <cstdint>

#include "agent/program/event_loop.h"
#include "agent/session.h"
#include "base/fd.h"

namespace berth::agent {

/// Watches its descriptor while there is anything to move, so that a full stream costs nothing.
/// Stays where it is in memory. Session and loop outlive it.
class Pump {
 public:
  enum class Direction : std::uint8_t { to_process, from_process, both };
  /// The stream is open, in the same directions, and stays so until the pump is gone.
  Pump(EventLoop& loop, Session& session, std::uint32_t stream, Fd fd, Direction direction);
  ~Pump() { close(); }
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

  /// Call it when something is new about the stream.
  void update();
  /// Of a terminal, for its size.
  int fd() const { return fd_.get(); }

 private:
  void move(std::uint32_t events);
  void read_from_process(OutgoingStream& out);
  void write_to_process(IncomingStream& in, std::uint32_t events);
  void close();

  EventLoop& loop_;
  Session& session_;
  std::uint32_t stream_;
  Fd fd_;
  Direction direction_;
  std::int64_t watched_ = -1;  // events, or -1
};

}  // namespace berth::agent
