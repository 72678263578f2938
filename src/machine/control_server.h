// The control socket's server: reads requests, runs their handlers, writes answers, progress and
// events.
//
// Lives on one loop. A handler is started for each request and may take as long as it likes; one
// connection's requests run concurrently. Every line, queue and count from outside is bounded
// (docs/formats/keeper-control.md). It knows no method but `cancel`: the keeper adds its own.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "async/event.h"
#include "async/gate.h"
#include "async/loop.h"
#include "async/stream.h"
#include "machine/control_protocol.h"
#include "machine/job_observer.h"

namespace berth::machine {

constexpr std::size_t control_connections_max = 64;
constexpr std::size_t control_calls_max = 64;                  // open requests of one connection
constexpr std::size_t control_outgoing_max = 8 * 1024 * 1024;  // bytes waiting for one client
constexpr Duration control_progress_interval = std::chrono::milliseconds(100);

/// One request while its handler runs.
class ControlCall final : public JobObserver {
 public:
  using Report = std::function<void(const ControlProgress&)>;
  using Farewell = std::function<void()>;
  /// `farewell`, which may be null, is the place for what is to be done when the client goes.
  ControlCall(ControlRequest request, Clock& clock, Report report, Farewell* farewell = nullptr);

  const std::string& method() const { return request_.method; }
  const Json& params() const { return request_.params; }

  /// The client has asked for its end, or gone.
  void cancel() { cancelled_ = true; }
  Result<void> check() const override;

  /// Is done when this client has gone and its last request has ended, in place of what an earlier
  /// request of it wanted: so that nothing stays as only this client could undo it.
  void when_client_goes(Farewell farewell);

  /// Tells the client, if it wants to know and has not been told a moment ago.
  void report(const ControlProgress& progress) override;

 private:
  ControlRequest request_;
  Clock& clock_;
  Report report_;  // empty: nobody wants to know
  Farewell* farewell_;
  Instant next_report_{};
  bool cancelled_ = false;
};

class ControlServer {
 public:
  /// The call outlives the task.
  using Handler = std::function<Task<Result<Json>>(ControlCall& call)>;

  explicit ControlServer(Loop& loop);
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;
  ~ControlServer();

  /// Before serve().
  void add(std::string method, Handler handler);

  /// Accepts connections from now on.
  void serve(std::unique_ptr<Listener> listener);

  /// To every client.
  void send_event(std::string_view event, std::string_view message);

  /// Asks every running request to end.
  void cancel_calls();

  /// Accepts no more, cancels what runs, lets its answers be read for up to `patience`, and
  /// disconnects everybody. Waits for the handlers however long they take.
  Task<> close(Duration patience);

 private:
  struct Connection;

  Task<> accept_connections();
  Task<> serve_connection(std::unique_ptr<Stream> stream);
  Task<> read_requests(Connection& connection);
  Task<> write_lines(Connection& connection);
  Task<> run_call(Connection& connection, ControlRequest request);
  bool handle_line(Connection& connection, std::string_view line);
  void answer_cancel(Connection& connection, const ControlRequest& request);
  void send(Connection& connection, std::string line);
  bool is_quiet() const;

  Loop& loop_;
  std::unordered_map<std::string, Handler> handlers_;
  std::unique_ptr<Listener> listener_;
  std::map<Connection*, std::unique_ptr<Connection>> connections_;
  Gate gate_;
  Event moved_;  // an answer has come nearer to its client
  bool closing_ = false;
};

}  // namespace berth::machine
