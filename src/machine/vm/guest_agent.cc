#include "machine/vm/guest_agent.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/socket.h"

namespace berth::machine {
namespace {

constexpr std::size_t read_size = 64 * 1024;  // bytes
// Where QEMU serves somebody else, and more wait than its socket takes, connecting lasts until they
// have gone: this is how soon it is noticed that the call is to end.
constexpr Duration connect_slice = std::chrono::milliseconds(200);
// An answer is taken as long as it comes without a pause of this length.
constexpr Duration answer_pause = std::chrono::milliseconds(200);
// How late an agent that is there may be.
constexpr Duration linger_max = std::chrono::seconds(30);

constexpr const char* freeze_command = "guest-fsfreeze-freeze";
constexpr const char* thaw_command = "guest-fsfreeze-thaw";
constexpr const char* shutdown_command = "guest-shutdown";

}  // namespace

struct GuestAgent::State {
  /// One call: waiting for its turn, or having it.
  struct Call {
    std::string command;
    AgentExchange& exchange;
    Instant until;
    bool is_late = false;
    bool is_connected = false;
  };

  State(UringLoop& on, std::string at, Duration how_long)
      : loop(on), path(std::move(at)), hold_max(how_long), turn(on), lingering(on) {}

  Task<Result<Json>> perform(std::string command, AgentExchange& exchange, Duration timeout);
  Task<Result<Json>> take_turn(Call& call);
  Task<Result<std::unique_ptr<Stream>>> connect(const Call& call);
  Task<Result<Json>> converse(Stream& stream, AgentExchange& exchange);
  Task<> stay(Stream& stream);
  Task<> linger();
  Task<> end_lingering();
  Error explain(Error error, const Call& call, Duration timeout) const;
  void hold(std::unique_ptr<Stream> stream);
  Task<std::unique_ptr<Stream>> take_held();
  bool may_go_on(const Call& call) const { return !closed && !call.is_late; }
  void interrupt() {
    if (active != nullptr) active->shutdown();
  }

  UringLoop& loop;
  std::string path;
  Duration hold_max;
  std::deque<Call*> queue;  // the first one has its turn
  Event turn;
  Stream* active = nullptr;      // of the call that has its turn
  std::unique_ptr<Stream> held;  // connected and idle, between a freeze and its thaw
  std::optional<Deadline> hold_ends;
  Instant hold_until{};
  Stream* lingerer = nullptr;  // connected for an answer that nobody waits for any more
  Gate lingering;
  bool closed = false;
};

GuestAgent::GuestAgent(UringLoop& loop, std::string socket_path, Duration hold)
    : state_(std::make_unique<State>(loop, std::move(socket_path), hold)) {}

GuestAgent::~GuestAgent() { CHECK(state_->closed && state_->queue.empty()); }

Task<Result<Json>> GuestAgent::State::perform(std::string command, AgentExchange& exchange,
                                              Duration timeout) {
  Call call{.command = std::move(command), .exchange = exchange, .until = loop.now() + timeout};
  queue.push_back(&call);
  Deadline deadline(loop, timeout, [this, &call] {
    call.is_late = true;
    if (queue.front() == &call) interrupt();
    turn.notify_all();
  });
  while (queue.front() != &call && may_go_on(call)) co_await turn.wait();
  Result<Json> outcome = failure(ErrorKind::timed_out, "other calls are under way");
  if (may_go_on(call)) outcome = co_await take_turn(call);
  co_await deadline.stop();
  std::erase(queue, &call);
  turn.notify_all();
  const bool is_owed = call.is_late && call.is_connected && !exchange.answer();
  if (is_owed && queue.empty() && !closed) lingering.spawn(linger());
  if (!outcome) outcome = failure(explain(std::move(outcome).error(), call, timeout));
  co_return outcome;
}

Task<Result<Json>> GuestAgent::State::take_turn(Call& call) {
  co_await end_lingering();
  auto stream = co_await take_held();
  if (!stream) stream = CO_TRY(co_await connect(call));
  active = stream.get();
  call.is_connected = true;
  if (!may_go_on(call)) interrupt();
  auto outcome = co_await converse(*stream, call.exchange);
  if (call.command == shutdown_command && call.exchange.answer()) co_await stay(*stream);
  active = nullptr;

  if (outcome && call.command == freeze_command) hold_until = loop.now() + hold_max;
  if (outcome && call.command == thaw_command) hold_until = {};
  if (call.exchange.answer() && may_go_on(call) && loop.now() < hold_until) hold(std::move(stream));
  co_return outcome;
}

Task<Result<std::unique_ptr<Stream>>> GuestAgent::State::connect(const Call& call) {
  while (true) {
    auto stream = co_await connect_unix(loop, path,
                                        std::min<Duration>(connect_slice, call.until - loop.now()));
    if (stream) co_return stream;
    const ErrorKind kind = stream.error().kind();
    if (kind == ErrorKind::timed_out && may_go_on(call)) continue;
    if (kind != ErrorKind::not_found) co_return stream;
    co_return failure(ErrorKind::disconnected, stream.error().message());
  }
}

Task<Result<Json>> GuestAgent::State::converse(Stream& stream, AgentExchange& exchange) {
  std::vector<std::byte> buffer(read_size);
  while (true) {
    const std::string output = exchange.take_output();
    const Bytes part = as_bytes(output);
    if (!output.empty()) CO_TRY(co_await stream.write_all(std::span(&part, 1)));
    if (exchange.answer()) co_return *exchange.answer();
    const std::size_t got = CO_TRY(co_await stream.read_some(buffer));
    if (got == 0) co_return failure(ErrorKind::disconnected, "QEMU has ended the connection");
    CO_TRY(exchange.receive(Bytes(buffer).first(got)));
  }
}

/// Until QEMU ends the connection or the call's time is over. Whatever is said goes nowhere.
Task<> GuestAgent::State::stay(Stream& stream) {
  std::vector<std::byte> buffer(read_size);
  while (true) {
    const auto got = co_await stream.read_some(buffer);
    if (!got || *got == 0) co_return;
  }
}

/// An agent whose answer nobody is there to take tries to write it again and again, without a pause
/// (see shutdown()): so one that is late is waited for. Until the next call, which does so itself.
Task<> GuestAgent::State::linger() {
  const auto stream = co_await connect_unix(loop, path, connect_slice);
  if (!stream || !queue.empty() || closed) co_return;
  lingerer = stream->get();
  Deadline end(loop, linger_max, [this] { lingerer->shutdown(); });
  std::vector<std::byte> buffer(read_size);
  if (const auto got = co_await lingerer->read_some(buffer); got && *got > 0) {
    Deadline pause(loop, answer_pause, [this] { lingerer->shutdown(); });
    co_await stay(*lingerer);
    co_await pause.stop();
  }
  co_await end.stop();
  lingerer = nullptr;
}

Task<> GuestAgent::State::end_lingering() {
  if (lingerer != nullptr) lingerer->shutdown();
  co_await lingering.drained();
}

Error GuestAgent::State::explain(Error error, const Call& call, Duration timeout) const {
  if (call.exchange.answer()) return error;  // the agent's own words
  if (closed) return {ErrorKind::cancelled, fmt::format("{} was cancelled", call.command)};
  if (call.is_late) {
    return {ErrorKind::timed_out,
            fmt::format("the guest agent does not answer {} within {} ms: is it running?",
                        call.command, timeout / std::chrono::milliseconds(1))};
  }
  return std::move(error).with_context(
      fmt::format("cannot ask the guest agent for {} over '{}'", call.command, path));
}

void GuestAgent::State::hold(std::unique_ptr<Stream> stream) {
  held = std::move(stream);
  hold_ends.emplace(loop, hold_until - loop.now(), [this] { held.reset(); });
}

/// Null if there is none.
Task<std::unique_ptr<Stream>> GuestAgent::State::take_held() {
  if (hold_ends) co_await hold_ends->stop();
  hold_ends.reset();
  co_return std::move(held);
}

Task<Result<Json>> GuestAgent::call(std::string command, Json arguments, Duration timeout) {
  AgentExchange exchange(make_agent_token(), command, arguments);
  co_return co_await state_->perform(std::move(command), exchange, timeout);
}

Task<Result<void>> GuestAgent::ping(Duration timeout) {
  CO_TRY(co_await call("guest-ping", nullptr, timeout));
  co_return Result<void>{};
}

Task<Result<unsigned>> GuestAgent::freeze(Duration timeout) {
  co_return parse_agent_count(CO_TRY(co_await call(freeze_command, nullptr, timeout)));
}

Task<Result<unsigned>> GuestAgent::thaw(Duration timeout) {
  co_return parse_agent_count(CO_TRY(co_await call(thaw_command, nullptr, timeout)));
}

Task<Result<bool>> GuestAgent::is_frozen(Duration timeout) {
  co_return parse_agent_is_frozen(CO_TRY(co_await call("guest-fsfreeze-status", nullptr, timeout)));
}

Task<Result<std::vector<GuestAddress>>> GuestAgent::addresses(Duration timeout) {
  co_return parse_guest_addresses(
      CO_TRY(co_await call("guest-network-get-interfaces", nullptr, timeout)));
}

Task<Result<void>> GuestAgent::set_time(std::chrono::system_clock::time_point time,
                                        Duration timeout) {
  const auto since_epoch =
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch());
  CO_TRY(co_await call("guest-set-time", {{"time", since_epoch.count()}}, timeout));
  co_return Result<void>{};
}

Task<Result<void>> GuestAgent::shutdown(std::string mode, Duration timeout) {
  AgentExchange exchange(make_agent_token(), shutdown_command, {{"mode", mode}},
                         AgentExchange::Success::silent);
  const auto outcome = co_await state_->perform(shutdown_command, exchange, timeout);
  if (outcome) co_return Result<void>{};
  // The agent went with the guest: QEMU says when that is off.
  const ErrorKind kind = outcome.error().kind();
  const bool went = kind == ErrorKind::timed_out || kind == ErrorKind::disconnected;
  if (exchange.has_asked() && went) co_return Result<void>{};
  co_return failure(outcome.error());
}

Task<> GuestAgent::close() {
  State& state = *state_;
  state.closed = true;
  state.interrupt();
  state.turn.notify_all();
  co_await state.end_lingering();
  while (!state.queue.empty()) co_await state.turn.wait();
  // Its destructor disconnects.
  const auto held = co_await state.take_held();
}

}  // namespace berth::machine
