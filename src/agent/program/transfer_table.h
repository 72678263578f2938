// Archives on their way: `archive_read`, `archive_write`. Each is packed or unpacked by a child of
// the agent, which is not of the workload and may do so while that is frozen.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <sys/types.h>

#include "agent/program/event_loop.h"
#include "agent/program/pump.h"
#include "agent/session.h"

namespace berth::agent {

class TransferTable {
 public:
  enum class Direction : std::uint8_t { from_guest, to_guest };

  TransferTable(EventLoop& loop, Session& session) : loop_(loop), session_(session) {}

  /// The answer to `request` is sent when the child has ended.
  Result<void> start(std::uint32_t request, const Fields& fields, Direction direction);
  bool contains(std::uint32_t stream) const { return transfers_.contains(stream); }
  /// One that was not answered so far is `cancelled`.
  void close(std::uint32_t stream);
  /// Of all transfers; each begins with its number.
  void list(FieldWriter& answer) const;

  /// Whether this child was one. Call it for children that nobody else knows.
  bool reaped(pid_t pid, int status);
  /// Call it when something is new about the stream.
  void stream_changed(std::uint32_t stream);
  /// Call it now and then, and from no callback: drops those that are over.
  void drop_ended();

 private:
  struct Transfer {
    std::optional<std::uint32_t> request;  // not answered so far
    std::string path;
    pid_t pid = -1;  // until it has ended
    Fd report;       // of the child: its error, if it has one
    std::unique_ptr<Pump> pump;
  };

  void answer(Transfer& transfer, const std::optional<Error>& error);

  EventLoop& loop_;
  Session& session_;
  std::map<std::uint32_t, Transfer> transfers_;
};

}  // namespace berth::agent
