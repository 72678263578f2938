#include "machine/vm/qmp_client.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/socket.h"
#include "machine/vm/peer_lines.h"
#include "machine/vm/qmp_codec.h"

namespace berth::machine {
namespace {

constexpr std::size_t read_size = 64 * 1024;  // bytes

auto milliseconds(Duration duration) { return duration / std::chrono::milliseconds(1); }

}  // namespace

struct QmpClient::State {
  /// One that somebody waits for; lives in execute().
  struct Command {
    Command(Loop& loop, std::string_view called) : name(called), settled(loop) {}
    std::string_view name;
    Event settled;
    std::optional<Result<Json>> outcome;
  };
  struct Outgoing {
    std::uint64_t id = 0;
    std::string line;
  };

  State(Loop& on, std::unique_ptr<Stream> over)
      : loop(on), stream(std::move(over)), greeted(on), outgoing_changed(on), left(on), gate(on) {}

  Task<Result<void>> shake_hands(Duration timeout);
  Task<> read_messages();
  Task<> write_commands();
  Task<> tell_closed_soon();
  void take(QmpMessage message);
  void settle(const QmpMessage& answer);
  Result<std::uint64_t> open(Command& command, const Json& arguments);
  void abandon(std::uint64_t id);
  void end(Error why);
  void tell_closed();

  Loop& loop;
  std::unique_ptr<Stream> stream;
  EventHandler on_event;
  ClosedHandler on_closed;
  bool was_greeted = false;
  bool reader_has_ended = false;
  bool told_closed = false;
  bool is_closing = false;    // close() has been called
  std::optional<Error> over;  // why the connection has ended
  Event greeted;              // or over
  std::uint64_t next_id = 1;
  std::map<std::uint64_t, Command*> unanswered;  // null: nobody waits any more
  std::deque<Outgoing> outgoing;
  Event outgoing_changed;
  std::size_t calls = 0;  // of execute(), under way
  Event left;             // one of them has ended
  Gate gate;
};

QmpClient::QmpClient(std::unique_ptr<State> state) : state_(std::move(state)) {}

QmpClient::~QmpClient() { CHECK(state_->is_closing && state_->calls == 0); }

bool QmpClient::is_open() const { return !state_->over; }

Task<Result<std::unique_ptr<QmpClient>>> QmpClient::connect(UringLoop& loop, std::string path,
                                                            Duration timeout) {
  const Instant deadline = loop.now() + timeout;
  const auto explain = [&path](Error error) {
    if (error.kind() == ErrorKind::not_found) error = {ErrorKind::disconnected, error.message()};
    return failure(
        std::move(error).with_context(fmt::format("cannot use QEMU's monitor at '{}'", path)));
  };
  auto stream = co_await connect_unix(loop, path, timeout);
  if (!stream) co_return explain(std::move(stream).error());
  auto client = co_await start(loop, std::move(*stream), deadline - loop.now());
  if (!client) co_return explain(std::move(client).error());
  co_return std::move(*client);
}

Task<Result<std::unique_ptr<QmpClient>>> QmpClient::start(Loop& loop,
                                                          std::unique_ptr<Stream> stream,
                                                          Duration timeout) {
  const Instant deadline = loop.now() + timeout;
  std::unique_ptr<QmpClient> client(
      new QmpClient(std::make_unique<State>(loop, std::move(stream))));
  Result<void> ready = co_await client->state_->shake_hands(timeout);
  if (ready) {
    auto entered = co_await client->execute("qmp_capabilities", nullptr, deadline - loop.now());
    if (!entered) ready = failure(std::move(entered).error());
  }
  if (ready) co_return client;
  co_await client->close();
  co_return failure(std::move(ready).error());
}

Task<Result<void>> QmpClient::State::shake_hands(Duration timeout) {
  gate.spawn(read_messages());
  gate.spawn(write_commands());
  Deadline deadline(loop, timeout, [this] { greeted.notify_all(); });
  while (!was_greeted && !over && !deadline.expired()) co_await greeted.wait();
  co_await deadline.stop();
  if (over) co_return failure(*over);
  if (!was_greeted) {
    co_return failure(
        ErrorKind::timed_out,
        fmt::format("QEMU does not greet within {} ms; it serves one client at a time",
                    milliseconds(timeout)));
  }
  co_return Result<void>{};
}

void QmpClient::set_handlers(EventHandler on_event, ClosedHandler on_closed) {
  state_->on_event = std::move(on_event);
  state_->on_closed = std::move(on_closed);
  if (state_->reader_has_ended) state_->gate.spawn(state_->tell_closed_soon());
}

Task<> QmpClient::State::read_messages() {
  LineBuffer lines(qmp_line_max);
  std::vector<std::byte> buffer(read_size);
  while (!over) {
    const auto got = co_await stream->read_some(buffer);
    if (!got) {
      end({ErrorKind::disconnected,
           fmt::format("the connection to QEMU has ended: {}", got.error().message())});
    } else if (*got == 0) {
      end({ErrorKind::disconnected, "QEMU has ended the connection"});
    } else {
      lines.append(Bytes(buffer).first(*got));
    }
    while (!over) {  // a handler may end it
      const auto line = lines.next();
      if (!line) end({ErrorKind::protocol, fmt::format("QEMU: {}", line.error().message())});
      if (!line || !*line) break;
      auto message = parse_qmp(**line);
      if (message) {
        take(std::move(*message));
      } else {
        end(std::move(message).error());
      }
    }
  }
  reader_has_ended = true;
  tell_closed();
}

void QmpClient::State::take(QmpMessage message) {
  const bool is_greeting = message.kind == QmpMessage::Kind::greeting;
  if (is_greeting == was_greeted) {
    return end({ErrorKind::protocol, was_greeted ? "QEMU greets twice" : "QEMU does not greet"});
  }
  if (is_greeting) {
    was_greeted = true;
    greeted.notify_all();
  } else if (message.kind == QmpMessage::Kind::event) {
    const EventHandler handler = on_event;  // it may be replaced meanwhile
    if (handler) handler(message.event, message.value);
  } else {
    settle(message);
  }
}

void QmpClient::State::settle(const QmpMessage& answer) {
  const auto found = answer.id ? unanswered.find(*answer.id) : unanswered.end();
  if (found == unanswered.end()) {
    return end({ErrorKind::protocol,
                fmt::format("QEMU answers what it was not asked{}{}",
                            answer.description.empty() ? "" : ": ", answer.description)});
  }
  Command* command = found->second;
  unanswered.erase(found);
  if (command == nullptr) return;
  if (answer.kind == QmpMessage::Kind::error) {
    command->outcome = failure(qmp_error(command->name, answer));
  } else {
    command->outcome = answer.value;
  }
  command->settled.notify_all();
}

/// Everything that waits hears of it; the reader and the writer end soon.
void QmpClient::State::end(Error why) {
  if (over) return;
  over = std::move(why);
  for (const auto& [id, command] : unanswered) {
    if (command == nullptr) continue;
    command->outcome = failure(*over);
    command->settled.notify_all();
  }
  unanswered.clear();
  outgoing.clear();
  stream->shutdown();
  greeted.notify_all();
  outgoing_changed.notify_all();
}

void QmpClient::State::tell_closed() {
  if (told_closed || is_closing || !on_closed) return;
  told_closed = true;
  const ClosedHandler handler = on_closed;
  handler();
}

Task<> QmpClient::State::tell_closed_soon() {
  co_await loop.yield();
  tell_closed();
}

Task<> QmpClient::State::write_commands() {
  while (true) {
    while (outgoing.empty() && !over) co_await outgoing_changed.wait();
    if (over) co_return;
    const std::string line = std::move(outgoing.front().line);
    outgoing.pop_front();
    const Bytes part = as_bytes(line);
    const auto written = co_await stream->write_all(std::span(&part, 1));
    if (written) continue;
    // QEMU's last words may still be unread: the reader says when the connection has ended.
    if (written.error().kind() != ErrorKind::disconnected) {
      end({ErrorKind::disconnected,
           fmt::format("the connection to QEMU has ended: {}", written.error().message())});
    }
    co_return;
  }
}

Result<std::uint64_t> QmpClient::State::open(Command& command, const Json& arguments) {
  if (over) {
    return failure(ErrorKind::disconnected,
                   fmt::format("cannot ask QEMU for {}: {}", command.name, over->message()));
  }
  if (unanswered.size() >= qmp_commands_max) {
    return failure(ErrorKind::limit, fmt::format("cannot ask QEMU for {}: {} commands have no "
                                                 "answer yet",
                                                 command.name, qmp_commands_max));
  }
  const std::uint64_t id = next_id++;
  unanswered.emplace(id, &command);
  outgoing.push_back({id, format_qmp_command(id, command.name, arguments)});
  outgoing_changed.notify_all();
  return id;
}

/// Nobody waits for it any more.
void QmpClient::State::abandon(std::uint64_t id) {
  if (over) return;
  const auto unsent = std::ranges::find(outgoing, id, &Outgoing::id);
  if (unsent == outgoing.end()) {
    unanswered[id] = nullptr;
  } else {
    outgoing.erase(unsent);
    unanswered.erase(id);
  }
}

Task<Result<Json>> QmpClient::execute(std::string command, Json arguments, Duration timeout) {
  State& state = *state_;
  State::Command waiting(state.loop, command);
  const std::uint64_t id = CO_TRY(state.open(waiting, arguments));
  ++state.calls;
  Deadline deadline(state.loop, timeout, [&waiting] { waiting.settled.notify_all(); });
  while (!waiting.outcome && !deadline.expired()) co_await waiting.settled.wait();
  co_await deadline.stop();
  if (!waiting.outcome) {
    state.abandon(id);
    waiting.outcome = failure(
        ErrorKind::timed_out,
        fmt::format("QEMU does not answer {} within {} ms", command, milliseconds(timeout)));
  }
  --state.calls;
  state.left.notify_all();
  co_return std::move(*waiting.outcome);
}

Task<> QmpClient::close() {
  State& state = *state_;
  state.is_closing = true;
  state.end({ErrorKind::disconnected, "the connection to QEMU was closed"});
  co_await state.gate.drained();
  while (state.calls != 0) co_await state.left.wait();
}

}  // namespace berth::machine
