#include "agent/session.h"

#include <algorithm>
#include <array>
#include <utility>

namespace berth::agent {
namespace {

constexpr std::size_t head_size = 2;
constexpr std::size_t position_size = 8;

void append_positions(ByteQueue& output, FrameType type, std::uint32_t stream, std::uint64_t first,
                      std::uint64_t second) {
  std::array<std::byte, 2 * position_size> payload{};
  Writer writer(payload);
  writer.le(first);
  writer.le(second);
  append_frame(output, type, stream, payload);
}

}  // namespace

void Session::greet(std::uint64_t token) {
  begin(token);
  output_.append(std::vector<std::byte>(resynchronization_size));
  append_frame(output_, FrameType::hello, static_cast<std::uint32_t>(token),
               encode(Greeting{.token = token}));
}

void Session::begin(std::uint64_t token) {
  disconnect();
  decoder_.expect(token);
}

void Session::greet_in_step(std::uint64_t token) {
  begin(token);
  append_frame(output_, FrameType::hello, static_cast<std::uint32_t>(token),
               encode(Greeting{.token = token}));
}

void Session::disconnect() {
  is_greeted_ = false;
  control_.clear();
  output_.clear();
}

std::optional<Message> Session::next() {
  while (const auto frame = decoder_.next()) {
    if (const auto message = take(*frame)) return message;
  }
  return std::nullopt;
}

std::optional<Message> Session::take(const Frame& frame) {
  const bool is_host = role_ == Role::host;
  if (frame.type == (is_host ? FrameType::welcome : FrameType::hello)) {
    // A second welcome of one connection is no more than noise.
    if (frame.payload.size() < greeting_size || (is_host && is_greeted_)) return refuse();
    take_greeting(frame);
    return Message{.kind = Message::Kind::greeted, .fields = frame.payload.subspan(greeting_size)};
  }
  if (!is_greeted_) return refuse();
  switch (frame.type) {
    case FrameType::request: return is_host ? refuse() : take_headed(Message::Kind::request, frame);
    case FrameType::event: return is_host ? take_headed(Message::Kind::event, frame) : refuse();
    case FrameType::answer:
      if (!is_host) return refuse();
      return Message{
          .kind = Message::Kind::answer, .channel = frame.channel, .fields = frame.payload};
    case FrameType::data:
    case FrameType::credit:
    case FrameType::end:
    case FrameType::stop: return take_stream_frame(frame);
    default: return refuse();
  }
}

void Session::take_greeting(const Frame& frame) {
  if (role_ == Role::agent) disconnect();
  peer_ = *decode_greeting(frame.payload);  // its length was looked at
  is_greeted_ = true;
  if (role_ == Role::host) return;
  std::vector<std::byte> payload = encode(Greeting{.token = peer_.token});
  payload.insert(payload.end(), welcome_.begin(), welcome_.end());
  append_frame(output_, FrameType::welcome, static_cast<std::uint32_t>(peer_.token), payload);
  for (auto& [number, stream] : streams_) {
    if (stream.out) stream.out->rewind();
    if (stream.in) stream.in->renew_credit();
  }
}

std::optional<Message> Session::take_headed(Message::Kind kind, const Frame& frame) {
  if (frame.payload.size() < head_size) return refuse();
  return Message{.kind = kind,
                 .channel = frame.channel,
                 .head = load_le<std::uint16_t>(frame.payload.data()),
                 .fields = frame.payload.subspan(head_size)};
}

std::optional<Message> Session::take_stream_frame(const Frame& frame) {
  Stream* stream = find(frame.channel);
  // It may have been closed while this was on its way.
  if (stream == nullptr) return std::nullopt;
  Reader reader(frame.payload);
  switch (frame.type) {
    case FrameType::data: {
      const auto position = reader.le<std::uint64_t>();
      const Bytes bytes = reader.raw(reader.remaining());
      if (!reader.ok() || !stream->in || bytes.size() > data_max) return refuse();
      if (!stream->in->receive(position, bytes)) {
        stream->in->renew_credit();
        return refuse();
      }
      break;
    }
    case FrameType::end: {
      const auto position = reader.le<std::uint64_t>();
      if (!reader.ok() || !stream->in || !stream->in->receive_end(position)) return refuse();
      break;
    }
    case FrameType::credit: {
      const auto acknowledged = reader.le<std::uint64_t>();
      const auto limit = reader.le<std::uint64_t>();
      if (!reader.ok() || !stream->out) return refuse();
      stream->out->take_credit(acknowledged, limit);
      break;
    }
    default:
      if (!stream->out) return refuse();
      stream->out->take_stop();
  }
  return Message{.kind = Message::Kind::stream, .channel = frame.channel, .fields = {}};
}

std::optional<Message> Session::refuse() {
  ++refused_;
  return std::nullopt;
}

Result<std::uint32_t> Session::request(const FieldWriter& request) {
  if (request.bytes().size() > frame_payload_max) {
    return failure(ErrorKind::limit, "a request of " + std::to_string(request.bytes().size()) +
                                         " bytes: the agent takes " +
                                         std::to_string(frame_payload_max));
  }
  append_frame(control_, FrameType::request, ++last_request_, request.bytes());
  return last_request_;
}

void Session::answer(std::uint32_t request, const FieldWriter& fields) {
  if (is_greeted_) append_frame(control_, FrameType::answer, request, fields.bytes());
}

void Session::event(std::uint32_t channel, const FieldWriter& fields) {
  if (is_greeted_) append_frame(control_, FrameType::event, channel, fields.bytes());
}

Stream* Session::find(std::uint32_t stream) {
  const auto found = streams_.find(stream);
  return found == streams_.end() ? nullptr : &found->second;
}

Stream* Session::open(std::uint32_t stream) {
  if (streams_.size() >= streams_max && !streams_.contains(stream)) return nullptr;
  return &(streams_[stream] = Stream{});
}

void Session::fill_control() {
  if (!is_greeted_ || control_.empty()) return;
  output_.append(control_.view());
  control_.clear();
}

void Session::fill_output() {
  if (!is_greeted_) return;
  while (output_.size() < output_target) {
    if (!control_.empty()) {
      fill_control();
      continue;
    }
    const std::size_t before = output_.size();
    append_credits();
    if (!append_data() && output_.size() == before) return;
  }
}

void Session::append_credits() {
  for (auto& [number, stream] : streams_) {
    if (!stream.in) continue;
    if (stream.in->is_stop_due()) {
      append_frame(output_, FrameType::stop, number, {});
      stream.in->mark_stop_sent();
    }
    if (stream.in->is_credit_due()) {
      append_positions(output_, FrameType::credit, number, stream.in->consumed(),
                       stream.in->next_limit());
      stream.in->mark_credit_sent();
    }
  }
}

/// One piece of the next stream that has one. False: none has.
bool Session::append_data() {
  auto next = streams_.upper_bound(turn_);
  for (std::size_t left = streams_.size(); left > 0; --left, ++next) {
    if (next == streams_.end()) next = streams_.begin();
    auto& [number, stream] = *next;
    if (!stream.out) continue;
    OutgoingStream& out = *stream.out;
    const Bytes bytes = out.sendable();
    if (!bytes.empty()) {
      std::vector<std::byte> payload(position_size);
      store_le(payload.data(), out.sent());
      payload.insert(payload.end(), bytes.begin(), bytes.end());
      append_frame(output_, FrameType::data, number, payload);
      out.mark_sent(bytes.size());
    } else if (out.is_end_due()) {
      std::array<std::byte, position_size> payload{};
      store_le(payload.data(), out.produced());
      append_frame(output_, FrameType::end, number, payload);
      out.mark_end_sent();
    } else {
      continue;
    }
    turn_ = number;
    return true;
  }
  return false;
}

}  // namespace berth::agent
