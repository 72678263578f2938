#include "container/agent_link.h"

#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/socket.h"
#include "base/ids.h"

namespace berth::container {
namespace {

constexpr Duration connect_timeout = std::chrono::seconds(2);
constexpr Duration in_step_patience = std::chrono::seconds(2);
constexpr std::size_t read_size = std::size_t{64} << 10;

std::uint64_t new_token() {
  std::array<std::byte, sizeof(std::uint64_t)> bytes{};
  SystemRandom().fill(bytes);
  return load_le<std::uint64_t>(bytes.data());
}

Result<AgentWelcome> decode_welcome(Bytes payload) {
  const agent::Fields fields = TRY(agent::Fields::decode(payload));
  return AgentWelcome{.kernel = TRY(fields.text_or(agent::Tag::kernel, "")),
                      .boot_id = TRY(fields.text_or(agent::Tag::boot_id, "")),
                      .boot_error = TRY(fields.text_or(agent::Tag::boot_error, ""))};
}

}  // namespace

/// Lives in the coroutine that waits.
struct AgentLink::Waiting {
  Event& done;
  std::optional<Result<AgentAnswer>> answer;
};

Result<AgentAnswer> AgentAnswer::decode(Bytes payload) {
  AgentAnswer answer;
  answer.bytes_.assign(payload.begin(), payload.end());
  answer.fields_ = TRY(agent::Fields::decode(answer.bytes_));
  return answer;
}

AgentLink::AgentLink(UringLoop& loop, std::unique_ptr<berth::Stream> stream, Handlers handlers)
    : loop_(loop),
      stream_(std::move(stream)),
      handlers_(std::move(handlers)),
      output_(loop),
      greeted_(loop),
      tasks_(loop) {}

AgentLink::~AgentLink() = default;

Task<Result<std::unique_ptr<AgentLink>>> AgentLink::connect(UringLoop& loop,
                                                            std::string socket_path,
                                                            Duration patience, Handlers handlers,
                                                            bool in_step) {
  const Instant deadline = loop.now() + patience;
  auto stream = CO_TRY(co_await dial(loop, std::move(socket_path)));
  co_return co_await connect(loop, std::move(stream), deadline - loop.now(), std::move(handlers),
                             in_step);
}

Task<Result<std::unique_ptr<berth::Stream>>> AgentLink::dial(UringLoop& loop,
                                                             std::string socket_path) {
  auto stream = co_await connect_unix(loop, std::move(socket_path), connect_timeout);
  if (!stream) co_return failure(ErrorKind::disconnected, stream.error().message());
  co_return std::move(*stream);
}

Task<Result<std::unique_ptr<AgentLink>>> AgentLink::connect(UringLoop& loop,
                                                            std::unique_ptr<berth::Stream> stream,
                                                            Duration patience, Handlers handlers,
                                                            bool in_step) {
  std::unique_ptr<AgentLink> link(new AgentLink(loop, std::move(stream), std::move(handlers)));
  auto greeted = co_await link->greet(patience, in_step);
  if (!greeted) {
    co_await link->close();
    co_return failure(std::move(greeted).error());
  }
  co_return link;
}

Task<Result<void>> AgentLink::greet(Duration patience, bool in_step) {
  if (in_step) {
    session_.greet_in_step(new_token());
  } else {
    session_.greet(new_token());
  }
  tasks_.spawn(read());
  tasks_.spawn(write());
  if (in_step) {
    co_await await_greeting(in_step_patience);
    if (!is_open_ && !is_over_) {
      session_.greet(new_token());
      wake();
    }
  }
  if (!is_open_ && !is_over_) co_await await_greeting(patience);
  if (!is_open_) end(Error(ErrorKind::timed_out, "the guest's agent does not answer"));
  if (is_over_) co_return failure(why_over_);
  co_return Result<void>{};
}

Task<> AgentLink::await_greeting(Duration patience) {
  Deadline deadline(loop_, patience, [this] { greeted_.notify_all(); });
  while (!is_open_ && !is_over_ && !deadline.expired()) co_await greeted_.wait();
  co_await deadline.stop();
}

Task<> AgentLink::read() {
  std::vector<std::byte> buffer(read_size);
  while (!is_over_) {
    const auto count = co_await stream_->read_some(buffer);
    if (!count || *count == 0) {
      end(count ? Error(ErrorKind::disconnected, "QEMU has closed the agent's port")
                : count.error());
      co_return;
    }
    received_ += *count;
    session_.receive(Bytes(buffer).first(*count));
    while (!is_over_) {
      const auto message = session_.next();
      if (!message) break;
      take(*message);
    }
    if (session_.is_lost()) end(Error(ErrorKind::protocol, "the agent said what is no frame"));
    wake();
  }
}

Task<> AgentLink::write() {
  while (!is_over_) {
    if (is_held_) {
      session_.fill_control();
    } else {
      session_.fill_output();
    }
    if (session_.output().empty()) {
      co_await output_.wait();
      continue;
    }
    // Its own memory: the session may make more meanwhile.
    const std::vector<std::byte> piece(session_.output().begin(), session_.output().end());
    session_.mark_written(piece.size());
    const std::array<Bytes, 1> parts = {Bytes(piece)};
    if (const auto written = co_await stream_->write_all(parts); !written) {
      end(written.error());
      co_return;
    }
  }
}

void AgentLink::take(const agent::Message& message) {
  switch (message.kind) {
    case agent::Message::Kind::greeted: return greeted(message);
    case agent::Message::Kind::answer: {
      const auto found = waiting_.find(message.channel);
      if (found == waiting_.end()) return;  // nobody waits any more
      found->second->answer = AgentAnswer::decode(message.fields);
      waiting_.erase(found);
      return greeted_.notify_all();
    }
    case agent::Message::Kind::event: {
      const auto fields = agent::Fields::decode(message.fields);
      if (fields && handlers_.event)
        handlers_.event(static_cast<agent::EventKind>(message.head), message.channel, *fields);
      return;
    }
    case agent::Message::Kind::stream: {
      const auto found = watchers_.find(message.channel);
      if (found == watchers_.end()) return;
      const auto changed = found->second;  // it may close the stream
      return changed();
    }
    case agent::Message::Kind::request: return;
  }
}

void AgentLink::greeted(const agent::Message& message) {
  if (session_.peer().version != agent::protocol_version) {
    return end(Error(ErrorKind::unsupported,
                     fmt::format("the guest's agent speaks version {}, and this is version {}",
                                 session_.peer().version, agent::protocol_version)));
  }
  auto welcome = decode_welcome(message.fields);
  if (!welcome) return end(welcome.error());
  welcome_ = *std::move(welcome);
  is_open_ = true;
  greeted_.notify_all();
}

void AgentLink::end(Error reason) {
  if (std::exchange(is_over_, true)) return;
  why_over_ = std::move(reason);
  const bool was_open = std::exchange(is_open_, false);
  stream_->shutdown();
  for (const auto& [number, waiting] : std::exchange(waiting_, {}))
    waiting->answer = failure(ErrorKind::disconnected, why_over_.message());
  greeted_.notify_all();
  output_.notify_all();
  for (const auto& [number, changed] : std::exchange(watchers_, {})) changed();
  if (was_open && handlers_.closed) handlers_.closed();
}

Task<Result<AgentAnswer>> AgentLink::request(agent::FieldWriter request, Duration timeout) {
  AgentAnswer answer = CO_TRY(co_await ask(std::move(request), timeout));
  if (auto error = agent::read_error(answer.fields())) co_return failure(*std::move(error));
  co_return answer;
}

Task<Result<AgentAnswer>> AgentLink::ask(agent::FieldWriter request, Duration timeout) {
  if (is_held_) CO_TRY(co_await released(timeout));
  co_return co_await send(std::move(request), timeout);
}

Task<Result<void>> AgentLink::released(Duration patience) {
  Deadline deadline(loop_, patience, [this] { output_.notify_all(); });
  while (is_held_ && !is_over_ && !deadline.expired()) co_await output_.wait();
  co_await deadline.stop();
  if (is_held_ && !is_over_) co_return failure(ErrorKind::timed_out, "the guest stands still");
  co_return Result<void>{};
}

/// The port is a stream: when the last request is answered, the agent has read all that was before.
Task<Result<void>> AgentLink::hold(Duration patience) {
  is_held_ = true;
  is_quiet_ = false;
  CO_TRY(co_await send(agent::FieldWriter(agent::Operation::list), patience));
  is_quiet_ = is_held_;
  co_return Result<void>{};
}

void AgentLink::release() {
  is_held_ = false;
  is_quiet_ = false;
  output_.notify_all();
}

Task<Result<AgentAnswer>> AgentLink::send(agent::FieldWriter request, Duration timeout) {
  if (!is_open_) co_return failure(ErrorKind::disconnected, why_over_.message());
  if (waiting_.size() >= agent_requests_max)
    co_return failure(ErrorKind::limit, "too many requests wait for the guest's agent");
  const std::uint32_t number = CO_TRY(session_.request(request));
  Waiting waiting{.done = greeted_, .answer = {}};
  waiting_.emplace(number, &waiting);
  wake();
  Deadline deadline(loop_, timeout, [&] {
    if (waiting.answer) return;
    waiting_.erase(number);
    waiting.answer = failure(ErrorKind::timed_out, "the guest's agent does not answer");
    greeted_.notify_all();
  });
  while (!waiting.answer) co_await waiting.done.wait();
  co_await deadline.stop();
  co_return *std::move(waiting.answer);
}

Result<agent::Stream*> AgentLink::open_stream(std::uint32_t number, std::function<void()> changed) {
  if (is_over_) return failure(ErrorKind::disconnected, why_over_.message());
  agent::Stream* stream = session_.open(number);
  if (stream == nullptr)
    return failure(ErrorKind::limit, "too many streams between the host and the guest");
  watchers_[number] = std::move(changed);
  return stream;
}

Task<Result<void>> AgentLink::connect_stream(std::uint32_t number, std::uint64_t port,
                                             std::function<void()> changed, Duration timeout) {
  agent::Stream* stream = CO_TRY(open_stream(number, std::move(changed)));
  stream->out.emplace(0, agent::stream_window);
  stream->in.emplace(0, agent::stream_window, agent::IncomingStream::Gaps::refused);
  agent::FieldWriter connect(agent::Operation::connect);
  connect.number(agent::Tag::stream, number).number(agent::Tag::port, port);
  CO_TRY(co_await request(std::move(connect), timeout));
  co_return Result<void>{};
}

Task<> AgentLink::abandon_stream(std::uint32_t number, Duration timeout) {
  if (!is_open()) co_return;
  agent::FieldWriter close(agent::Operation::close_stream);
  close.number(agent::Tag::stream, number);
  (void)co_await request(std::move(close), timeout);
}

void AgentLink::close_stream(std::uint32_t number) {
  watchers_.erase(number);
  session_.close(number);
}

Task<> AgentLink::close() {
  end(Error(ErrorKind::cancelled, "the agent's link is closed"));
  co_await tasks_.drained();
}

}  // namespace berth::container
