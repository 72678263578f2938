// One TCP connection to a service of the guest: from connect(2) until both directions have ended.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "agent/program/event_loop.h"
#include "agent/program/timer.h"
#include "agent/session.h"
#include "base/fd.h"

namespace berth::agent {

struct ServiceAddress {
  std::string address = "127.0.0.1";  // IPv4 or IPv6, no name
  std::uint16_t port = 0;
};

/// Watches its socket while there is anything to move. Stays where it is in memory. Session and
/// loop outlive it; its stream is open, both ways, and stays so until it is gone.
class Connection {
 public:
  /// Called once: when it is connected, or when it cannot be. Must not destroy the connection.
  using Connected = std::function<void(Result<void>)>;

  Connection(EventLoop& loop, Session& session, std::uint32_t stream, ServiceAddress where,
             Connected connected)
      : loop_(loop),
        session_(session),
        stream_(stream),
        where_(std::move(where)),
        connected_(std::move(connected)) {}
  ~Connection() { close(); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// `invalid_argument`: not an address. `disconnected`: refused at once. Then it is of no use.
  Result<void> start(std::chrono::milliseconds limit);
  /// Call it when something is new about the stream.
  void update();
  /// It could not be connected, or both directions have ended and the host knows.
  bool is_over() const;
  /// The service is told that its peer is gone, unless everything was said.
  void abort();
  const ServiceAddress& where() const { return where_; }

 private:
  void finish_connecting(int error);
  void move(std::uint32_t events);
  void read_from_service(OutgoingStream& out);
  void write_to_service(IncomingStream& in);
  void fail(Stream& stream, int error);
  void watch(std::uint32_t events);
  void close();

  EventLoop& loop_;
  Session& session_;
  std::uint32_t stream_;
  ServiceAddress where_;
  Connected connected_;  // empty once it was called
  Fd fd_;
  std::unique_ptr<Timer> deadline_;
  bool is_shut_ = false;       // for writing
  std::uint32_t watched_ = 0;  // events
};

}  // namespace berth::agent
