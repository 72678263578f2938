// The connections that a host has asked for: `connect`, `close_stream`.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "agent/program/connection.h"
#include "agent/program/event_loop.h"
#include "agent/session.h"

namespace berth::agent {

class ConnectionTable {
 public:
  ConnectionTable(EventLoop& loop, Session& session) : loop_(loop), session_(session) {}

  /// The answer to `request` is sent when it is connected, or cannot be.
  Result<void> connect(std::uint32_t request, const Fields& fields);
  bool contains(std::uint32_t stream) const { return connections_.contains(stream); }
  /// One that has not ended both ways is reset; one that is not connected yet answers `cancelled`.
  void close(std::uint32_t stream);
  /// Of all connections; each begins with its number.
  void list(FieldWriter& answer) const;

  /// Call it when something is new about the stream.
  void stream_changed(std::uint32_t stream);
  /// Call it now and then, and from no callback: drops those that are over.
  void drop_ended();

 private:
  struct Entry {
    std::uint32_t request = 0;
    bool is_answered = false;
    std::unique_ptr<Connection> connection;
  };

  void answer(std::uint32_t stream, const Result<void>& connected);

  EventLoop& loop_;
  Session& session_;
  std::map<std::uint32_t, Entry> connections_;
};

/// What `stream` names of a request: one that the host may choose and that is not in use.
Result<std::uint32_t> read_new_stream(const Fields& fields, Session& session);
/// How far a stream has come, as `list` says it.
void write_positions(FieldWriter& answer, std::uint32_t number, const Stream& stream);

}  // namespace berth::agent
