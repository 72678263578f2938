#include "machine/control_server.h"

#include <algorithm>
#include <array>
#include <deque>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "async/deadline.h"
#include "base/log.h"
#include "machine/control_messages.h"

namespace berth::machine {
namespace {

constexpr std::size_t read_size = 64 * 1024;  // bytes
constexpr std::size_t write_parts_max = 64;   // lines of one write
constexpr Duration accept_pause = std::chrono::milliseconds(100);

bool wants_progress(const Json& params) {
  const auto found = params.find("progress");
  return found != params.end() && found->is_boolean() && found->get<bool>();
}

}  // namespace

ControlCall::ControlCall(ControlRequest request, Clock& clock, Report report, Farewell* farewell)
    : request_(std::move(request)),
      clock_(clock),
      report_(std::move(report)),
      farewell_(farewell) {}

void ControlCall::when_client_goes(Farewell farewell) {
  if (farewell_ != nullptr) *farewell_ = std::move(farewell);
}

Result<void> ControlCall::check() const {
  if (!cancelled_) return {};
  return failure(ErrorKind::cancelled, fmt::format("{} was cancelled", request_.method));
}

void ControlCall::report(const ControlProgress& progress) {
  if (!report_ || clock_.now() < next_report_) return;
  next_report_ = clock_.now() + control_progress_interval;
  report_(progress);
}

struct ControlServer::Connection {
  Connection(Loop& loop, std::unique_ptr<Stream> over)
      : stream(std::move(over)), outgoing_changed(loop), writer(loop), running(loop) {}

  std::unique_ptr<Stream> stream;
  std::deque<std::string> outgoing;
  std::size_t outgoing_bytes = 0;
  bool write_failed = false;
  bool ended = false;  // nothing more will be sent
  Event outgoing_changed;
  std::map<std::uint64_t, ControlCall*> calls;
  ControlCall::Farewell farewell;
  Gate writer;
  Gate running;
};

ControlServer::ControlServer(Loop& loop) : loop_(loop), gate_(loop), moved_(loop) {}

ControlServer::~ControlServer() = default;

void ControlServer::add(std::string method, Handler handler) {
  handlers_.insert_or_assign(std::move(method), std::move(handler));
}

void ControlServer::serve(std::unique_ptr<Listener> listener) {
  listener_ = std::move(listener);
  gate_.spawn(accept_connections());
}

Task<> ControlServer::accept_connections() {
  while (!closing_) {
    auto stream = co_await listener_->accept();
    if (closing_) co_return;
    if (!stream) {
      if (stream.error().kind() == ErrorKind::cancelled) co_return;
      log_warning("control socket: cannot accept a connection: {}", stream.error().message());
      co_await loop_.sleep(accept_pause);  // out of descriptors, most likely: not for ever
      continue;
    }
    if (connections_.size() >= control_connections_max) {
      log_warning("control socket: a connection was refused: {} are open", connections_.size());
      continue;
    }
    gate_.spawn(serve_connection(std::move(*stream)));
  }
}

Task<> ControlServer::serve_connection(std::unique_ptr<Stream> stream) {
  auto owned = std::make_unique<Connection>(loop_, std::move(stream));
  Connection& connection = *owned;
  connections_.emplace(&connection, std::move(owned));

  connection.writer.spawn(write_lines(connection));
  co_await read_requests(connection);
  for (const auto& [id, call] : connection.calls) call->cancel();
  co_await connection.running.drained();
  if (connection.farewell) connection.farewell();
  connection.ended = true;
  connection.outgoing_changed.notify_all();
  co_await connection.writer.drained();
  connection.stream->shutdown();
  connections_.erase(&connection);
}

Task<> ControlServer::read_requests(Connection& connection) {
  std::string pending;
  std::vector<std::byte> buffer(read_size);
  while (true) {
    const auto got = co_await connection.stream->read_some(buffer);
    if (!got || *got == 0) co_return;
    pending += as_text(Bytes(buffer).first(*got));

    std::size_t start = 0;
    for (auto end = pending.find('\n'); end != std::string::npos; end = pending.find('\n', start)) {
      if (!handle_line(connection, std::string_view(pending).substr(start, end - start))) co_return;
      start = end + 1;
    }
    pending.erase(0, start);
    if (pending.size() > control_line_max) {
      send(connection,
           format_error({}, Error(ErrorKind::protocol,
                                  fmt::format("a line has more than {} bytes", control_line_max))));
      co_return;
    }
  }
}

/// False where the connection must end.
bool ControlServer::handle_line(Connection& connection, std::string_view line) {
  auto request = parse_request(line);
  if (!request) {
    send(connection, format_error({}, request.error()));
    return false;
  }
  if (request->method == "cancel") {
    answer_cancel(connection, *request);
    return true;
  }
  const auto refuse = [&](ErrorKind kind, std::string message) {
    send(connection, format_error(request->id, Error(kind, std::move(message))));
    return true;
  };
  if (!handlers_.contains(request->method)) {
    return refuse(ErrorKind::unsupported, fmt::format("there is no method '{}'", request->method));
  }
  if (connection.calls.contains(request->id)) {
    return refuse(ErrorKind::protocol, fmt::format("the request {} is open already", request->id));
  }
  if (connection.calls.size() >= control_calls_max) {
    return refuse(ErrorKind::limit,
                  fmt::format("{} requests are open on this connection", control_calls_max));
  }
  connection.running.spawn(run_call(connection, std::move(*request)));
  return true;
}

void ControlServer::answer_cancel(Connection& connection, const ControlRequest& request) {
  const auto id = required_number_param(request.params, "id");
  if (!id) return send(connection, format_error(request.id, id.error()));
  const auto call = connection.calls.find(*id);
  if (call == connection.calls.end()) {
    const Error error(ErrorKind::not_found, fmt::format("there is no open request {}", *id));
    return send(connection, format_error(request.id, error));
  }
  call->second->cancel();
  send(connection, format_result(request.id, Json::object()));
}

Task<> ControlServer::run_call(Connection& connection, ControlRequest request) {
  const std::uint64_t id = request.id;
  ControlCall::Report report;
  if (wants_progress(request.params)) {
    report = [this, &connection, id](const ControlProgress& progress) {
      // A client that is behind with reading does not need every figure.
      if (connection.outgoing.empty()) send(connection, format_progress(id, progress));
    };
  }
  const Handler& handler = handlers_.find(request.method)->second;
  ControlCall call(std::move(request), loop_, std::move(report), &connection.farewell);
  connection.calls.emplace(id, &call);
  auto result = co_await handler(call);
  connection.calls.erase(id);
  if (result) {
    send(connection, format_result(id, std::move(*result)));
  } else {
    send(connection, format_error(id, result.error()));
  }
  moved_.notify_all();
}

void ControlServer::send(Connection& connection, std::string line) {
  if (connection.write_failed) return;
  if (connection.outgoing_bytes + line.size() > control_outgoing_max) {
    log_warning("control socket: a client that does not read its answers was disconnected");
    connection.write_failed = true;
    connection.stream->shutdown();
    return;
  }
  connection.outgoing_bytes += line.size();
  connection.outgoing.push_back(std::move(line));
  connection.outgoing_changed.notify_all();
}

Task<> ControlServer::write_lines(Connection& connection) {
  while (true) {
    while (connection.outgoing.empty() && !connection.ended)
      co_await connection.outgoing_changed.wait();
    if (connection.outgoing.empty() || connection.write_failed) co_return;

    // The lines stay at the front of the queue, whose elements do not move, until they are written.
    std::array<Bytes, write_parts_max> parts;
    const std::size_t count = std::min(parts.size(), connection.outgoing.size());
    for (std::size_t i = 0; i < count; ++i) parts[i] = as_bytes(connection.outgoing[i]);
    const auto written = co_await connection.stream->write_all(std::span(parts).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      connection.outgoing_bytes -= connection.outgoing.front().size();
      connection.outgoing.pop_front();
    }
    moved_.notify_all();
    if (!written) {
      connection.write_failed = true;
      connection.stream->shutdown();
      co_return;
    }
  }
}

void ControlServer::send_event(std::string_view event, std::string_view message) {
  const std::string line = format_event(event, message);
  for (const auto& [key, connection] : connections_) send(*connection, line);
}

void ControlServer::cancel_calls() {
  for (const auto& [key, connection] : connections_) {
    for (const auto& [id, call] : connection->calls) call->cancel();
  }
}

bool ControlServer::is_quiet() const {
  for (const auto& [key, connection] : connections_) {
    if (!connection->calls.empty()) return false;
    if (!connection->outgoing.empty() && !connection->write_failed) return false;
  }
  return true;
}

Task<> ControlServer::close(Duration patience) {
  closing_ = true;
  if (listener_) listener_->close();
  cancel_calls();
  Deadline patience_ends(loop_, patience, [this] { moved_.notify_all(); });
  while (!is_quiet() && !patience_ends.expired()) co_await moved_.wait();
  co_await patience_ends.stop();
  for (const auto& [key, connection] : connections_) connection->stream->shutdown();
  co_await gate_.drained();
}

}  // namespace berth::machine
