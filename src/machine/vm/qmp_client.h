// A client of QEMU's monitor (QMP): one connection, commands and events.
//
// On one loop. Commands may overlap; each waits for its own answer. QEMU serves one client at a
// time: close() before somebody else connects. When the connection ends, open and later commands
// end with `disconnected`. An answer that is an error is `precondition` with QEMU's words (class
// DeviceNotFound: `not_found`; a command that this QEMU does not know: `unsupported`). Bytes that
// are no QMP end the connection: `protocol` for open commands.
// Source: QEMU, docs/interop/qmp-spec.rst.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "async/stream.h"
#include "async/task.h"
#include "async/uring_loop.h"
#include "machine/control_protocol.h"

namespace berth::machine {

constexpr std::size_t qmp_line_max = std::size_t{8} << 20;  // bytes
constexpr std::size_t qmp_commands_max = 64;                // without an answer so far

class QmpClient {
 public:
  /// Called on the loop for each event, in order; must not block or destroy the client. It may
  /// start a task that does close(): no event comes after that.
  using EventHandler = std::function<void(const std::string& event, const Json& data)>;
  /// Once, when the connection has ended by itself (not by close()); the same rules.
  using ClosedHandler = std::function<void()>;

  /// Waits for the greeting and enters command mode. `disconnected` if nobody listens, `timed_out`
  /// also while QEMU serves somebody else.
  static Task<Result<std::unique_ptr<QmpClient>>> connect(UringLoop& loop, std::string path,
                                                          Duration timeout);
  /// The same over any connected stream: for tests.
  static Task<Result<std::unique_ptr<QmpClient>>> start(Loop& loop, std::unique_ptr<Stream> stream,
                                                        Duration timeout);
  QmpClient(const QmpClient&) = delete;
  QmpClient& operator=(const QmpClient&) = delete;
  /// After close() has ended.
  ~QmpClient();

  /// Events that came before are lost: set these first, then ask for what they would have told. An
  /// end of the connection is told also if it was earlier. Either may be null.
  void set_handlers(EventHandler on_event, ClosedHandler on_closed);

  /// The member `return` of the answer. `timed_out` if none came in time: an answer that comes
  /// later is dropped; a command that could not even be sent by then is not carried out. `limit` if
  /// qmp_commands_max have no answer, those that timed out among them. Null arguments are none.
  Task<Result<Json>> execute(std::string command, Json arguments, Duration timeout);

  bool is_open() const;
  /// Disconnects: open commands end with `disconnected`. Waits until nothing of the client is under
  /// way. Any time, more than once.
  Task<> close();

 private:
  struct State;
  explicit QmpClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace berth::machine
