#include "agent/program/connection_table.h"

#include <algorithm>
#include <utility>

namespace berth::agent {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t default_timeout_ms = 10'000;
constexpr std::uint64_t timeout_max_ms = 600'000;

}  // namespace

Result<std::uint32_t> read_new_stream(const Fields& fields, Session& session) {
  const std::uint64_t wanted = TRY(fields.number(Tag::stream));
  if (wanted < first_free_stream || wanted > UINT32_MAX) {
    return failure(ErrorKind::invalid_argument, "a stream's number is " +
                                                    std::to_string(first_free_stream) + " to " +
                                                    std::to_string(UINT32_MAX));
  }
  const auto number = static_cast<std::uint32_t>(wanted);
  if (session.find(number) != nullptr) {
    return failure(ErrorKind::already_exists, "there is a stream " + std::to_string(number));
  }
  return number;
}

void write_positions(FieldWriter& answer, std::uint32_t number, const Stream& stream) {
  answer.number(Tag::stream, number);
  if (stream.out) {
    answer.number(Tag::output_kept_from, stream.out->kept_from());
    answer.number(Tag::output_produced, stream.out->produced());
  }
  if (stream.in) {
    answer.number(Tag::input_received, stream.in->received());
    answer.number(Tag::input_limit, stream.in->limit());
  }
}

Result<void> ConnectionTable::connect(std::uint32_t request, const Fields& fields) {
  const std::uint32_t number = TRY(read_new_stream(fields, session_));
  ServiceAddress where;
  where.address = TRY(fields.text_or(Tag::address, where.address));
  const std::uint64_t port = TRY(fields.number(Tag::port));
  if (port == 0 || port > UINT16_MAX) {
    return failure(ErrorKind::invalid_argument, std::to_string(port) + " is not a port");
  }
  where.port = static_cast<std::uint16_t>(port);
  const std::uint64_t timeout_ms =
      std::min(TRY(fields.number_or(Tag::timeout_ms, default_timeout_ms)), timeout_max_ms);
  if (connections_.size() >= connections_max) {
    return failure(ErrorKind::limit,
                   "there are " + std::to_string(connections_max) + " connections");
  }
  Stream* stream = session_.open(number);
  if (stream == nullptr) return failure(ErrorKind::limit, "there are too many streams");
  stream->out.emplace();
  stream->in.emplace(0, stream_window, IncomingStream::Gaps::refused);
  auto connection = std::make_unique<Connection>(
      loop_, session_, number, std::move(where),
      [this, number](const Result<void>& connected) { answer(number, connected); });
  if (auto started = connection->start(milliseconds(timeout_ms)); !started) {
    session_.close(number);
    return started;
  }
  connections_[number] = {.request = request, .connection = std::move(connection)};
  return {};
}

void ConnectionTable::answer(std::uint32_t stream, const Result<void>& connected) {
  Entry& entry = connections_.at(stream);
  FieldWriter fields;
  if (!connected) {
    write_error(fields, connected.error());
    session_.close(stream);  // drop_ended() does the rest
  }
  session_.answer(entry.request, fields);
  entry.is_answered = true;
}

void ConnectionTable::close(std::uint32_t stream) {
  const auto found = connections_.find(stream);
  if (found == connections_.end()) return;
  Entry& entry = found->second;
  if (!entry.is_answered) answer(stream, failure(ErrorKind::cancelled, "the stream was closed"));
  entry.connection->abort();
  connections_.erase(found);
  session_.close(stream);
}

void ConnectionTable::list(FieldWriter& answer) const {
  for (const auto& [number, entry] : connections_) {
    const Stream* stream = session_.find(number);
    if (stream == nullptr) continue;
    answer.number(Tag::connection, number);
    answer.text(Tag::address, entry.connection->where().address);
    answer.number(Tag::port, entry.connection->where().port);
    write_positions(answer, number, *stream);
  }
}

void ConnectionTable::stream_changed(std::uint32_t stream) {
  const auto found = connections_.find(stream);
  if (found != connections_.end()) found->second.connection->update();
}

void ConnectionTable::drop_ended() {
  for (auto next = connections_.begin(); next != connections_.end();) {
    const auto& [number, entry] = *next;
    if (!entry.connection->is_over()) {
      ++next;
      continue;
    }
    session_.close(number);
    next = connections_.erase(next);
  }
}

}  // namespace berth::agent
