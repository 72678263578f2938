// For tests: a client that says exactly what it is told to, over any Stream.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "async/stream.h"
#include "nbd/codec.h"
#include "nbd/wire.h"

namespace berth::nbd {

/// A simple reply, or one chunk of a structured one.
struct ClientReply {
  std::uint64_t cookie = 0;
  bool done = true;
  ReplyType type = ReplyType::none;  // none for a simple reply
  WireError error = WireError::none;
  std::uint64_t offset = 0;     // of data or a hole
  std::vector<std::byte> data;  // of a read, zeros for a hole
  std::uint32_t context = 0;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> extents;  // length, flags
};

class TestClient {
 public:
  struct Entry {
    bool structured_replies = true;
    std::vector<std::string> contexts;
  };

  explicit TestClient(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}

  Stream& stream() { return *stream_; }

  Task<Result<void>> send(Wire wire) {
    const std::array<Bytes, 1> parts{Bytes(wire.bytes())};
    co_return co_await stream_->write_all(parts);
  }

  Task<Result<std::vector<std::byte>>> receive(std::size_t length) {
    std::vector<std::byte> bytes(length);
    CO_TRY(co_await stream_->read_exactly(bytes));
    co_return bytes;
  }

  Task<Result<void>> greet() {
    CO_TRY(co_await receive(18));
    co_return co_await send(client_flags());
  }

  /// The final answer; `on_answer` would be for the ones before, which are dropped.
  Task<Result<OptionReply>> ask(Option which, Wire data) {
    CO_TRY(co_await send(option(which, data.bytes())));
    while (true) {
      const auto header = CO_TRY(co_await receive(option_reply_header_size));
      WireReader reader(header);
      reader.number<std::uint64_t>();
      reader.number<std::uint32_t>();
      const auto type = static_cast<OptionReply>(reader.number<std::uint32_t>());
      CO_TRY(co_await receive(reader.number<std::uint32_t>()));
      const bool final = type == OptionReply::ack || static_cast<std::uint32_t>(type) >= 1U << 31;
      if (final) co_return type;
    }
  }

  /// All the way into the transmission phase of an export.
  Task<Result<void>> enter(std::string name, Entry entry) {
    structured_ = entry.structured_replies;
    CO_TRY(co_await greet());
    if (structured_) CO_TRY(co_await ask(Option::structured_reply, {}));
    if (!entry.contexts.empty()) {
      CO_TRY(co_await ask(Option::set_meta_context, context_data(name, entry.contexts)));
    }
    const OptionReply went = CO_TRY(co_await ask(Option::go, info_data(name)));
    if (went != OptionReply::ack)
      co_return failure(ErrorKind::not_found, "the server refused the export");
    co_return Result<void>{};
  }

  Task<Result<void>> request(Request request, std::vector<std::byte> payload) {
    if (request.type == Command::read) reads_[request.cookie] = request.length;
    const Wire header = wire_request(request);
    const std::array<Bytes, 2> parts{Bytes(header.bytes()), Bytes(payload)};
    co_return co_await stream_->write_all(parts);
  }

  Task<Result<ClientReply>> reply() {
    const auto magic_bytes = CO_TRY(co_await receive(4));
    const auto magic = load_be<std::uint32_t>(magic_bytes.data());
    if (magic == structured_reply_magic) co_return co_await chunk();
    if (magic != simple_reply_magic)
      co_return failure(ErrorKind::protocol, "a reply with another magic number");
    const auto rest = CO_TRY(co_await receive(12));
    WireReader reader(rest);
    ClientReply reply;
    reply.error = static_cast<WireError>(reader.number<std::uint32_t>());
    reply.cookie = reader.number<std::uint64_t>();
    const auto read = reads_.find(reply.cookie);
    if (read != reads_.end()) {
      if (structured_) co_return failure(ErrorKind::protocol, "a simple reply to a read");
      if (reply.error == WireError::none) reply.data = CO_TRY(co_await receive(read->second));
      reads_.erase(read);
    }
    co_return reply;
  }

  /// Sends one request and receives its only reply.
  Task<Result<ClientReply>> call(Request to_send, std::vector<std::byte> payload = {}) {
    CO_TRY(co_await request(to_send, std::move(payload)));
    co_return co_await reply();
  }

  /// Whether the server closes the connection without another byte.
  Task<bool> ends() {
    std::array<std::byte, 1> byte;
    const auto got = co_await stream_->read_some(byte);
    co_return !got || *got == 0;
  }

 private:
  Task<Result<ClientReply>> chunk() {
    const auto header = CO_TRY(co_await receive(16));
    WireReader reader(header);
    ClientReply reply;
    reply.done = (reader.number<std::uint16_t>() & reply_flag_done) != 0;
    reply.type = static_cast<ReplyType>(reader.number<std::uint16_t>());
    reply.cookie = reader.number<std::uint64_t>();
    const auto payload = CO_TRY(co_await receive(reader.number<std::uint32_t>()));
    WireReader fields(payload);
    switch (reply.type) {
      case ReplyType::none: break;
      case ReplyType::offset_data: {
        reply.offset = fields.number<std::uint64_t>();
        const Bytes data = fields.raw(fields.left());
        reply.data.assign(data.begin(), data.end());
        break;
      }
      case ReplyType::offset_hole:
        reply.offset = fields.number<std::uint64_t>();
        reply.data.resize(fields.number<std::uint32_t>());
        break;
      case ReplyType::block_status:
        reply.context = fields.number<std::uint32_t>();
        while (fields.left() != 0) {
          const auto length = fields.number<std::uint32_t>();
          reply.extents.emplace_back(length, fields.number<std::uint32_t>());
        }
        break;
      case ReplyType::error:
      case ReplyType::error_offset:
        reply.error = static_cast<WireError>(fields.number<std::uint32_t>());
        break;
    }
    if (reply.done) reads_.erase(reply.cookie);
    co_return reply;
  }

  std::unique_ptr<Stream> stream_;
  bool structured_ = true;
  std::map<std::uint64_t, std::uint32_t> reads_;
};

}  // namespace berth::nbd
