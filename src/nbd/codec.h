// The transmission phase on the wire: requests in, replies out. Pure and synchronous; memory is the
// caller's.
//
// Encoders write into `into`, which the caller makes large enough (the sizes are below), and give
// the number of bytes. Requests come from outside: whatever they hold, they end in an answer or in
// `protocol`.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "nbd/export.h"
#include "nbd/protocol.h"

namespace berth::nbd {

/// NBD: Request message.
struct Request {
  std::uint16_t flags = 0;
  Command type{};  // any value
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;  // bytes
  std::uint32_t length = 0;  // bytes

  bool has(std::uint16_t flag) const { return (flags & flag) != 0; }
};

/// NBD: Request message. `protocol` where the magic number is another.
Result<Request> parse_request(std::span<const std::byte, request_size> bytes);

/// What a client has negotiated: what its requests are judged by.
struct Session {
  std::uint64_t size = 0;  // bytes
  std::uint16_t transmission_flags = 0;
  std::uint32_t block_minimum = 1;                   // bytes
  std::uint32_t block_maximum = payload_length_max;  // bytes
  bool structured_replies = false;
  std::size_t context_count = 0;
};

/// NBD: Transmission flags.
std::uint16_t transmission_flags(const ExportInfo& info, bool structured_replies);

/// Why a request is refused without being tried.
struct Refusal {
  WireError error = WireError::none;
  std::string_view reason;

  explicit operator bool() const { return error != WireError::none; }
};

/// NBD: Request types, Error values, Command flags, Size constraints.
Refusal check_request(const Request& request, const Session& session);

/// The error of an export as its client hears of it (NBD: Error values).
WireError wire_error(ErrorKind kind, const Request& request);

constexpr std::size_t reply_header_size_max = chunk_header_size + 12;
constexpr std::size_t error_chunk_size_max = chunk_header_size + 14 + error_message_max;
constexpr std::size_t block_status_size(std::size_t extents) {
  return chunk_header_size + 4 + extents * status_descriptor_size;
}

using ReplyHeader = std::span<std::byte, reply_header_size_max>;

/// NBD: Simple reply message. The data of a read follows it.
std::size_t encode_simple_reply(ReplyHeader into, std::uint64_t cookie, WireError error);

// NBD: Structured reply chunk message, Structured reply types. `done` ends the reply.
enum class Chunk : std::uint8_t { more, done };

std::size_t encode_none(ReplyHeader into, std::uint64_t cookie);
/// `length` bytes of data follow it; at least one.
std::size_t encode_offset_data(ReplyHeader into, std::uint64_t cookie, Chunk chunk,
                               std::uint64_t offset, std::uint32_t length);
std::size_t encode_offset_hole(ReplyHeader into, std::uint64_t cookie, Chunk chunk,
                               std::uint64_t offset, std::uint32_t length);
/// NBD_REPLY_TYPE_ERROR, or _ERROR_OFFSET with an offset. Long messages are cut. Needs
/// error_chunk_size_max bytes.
std::size_t encode_error(MutableBytes into, std::uint64_t cookie, Chunk chunk, WireError error,
                         std::string_view message, std::optional<std::uint64_t> offset = {});
/// Needs block_status_size(extents.size()) bytes. Extents with equal flags are joined, and what
/// reaches beyond `length_max` is left out. Nothing at all (0) where they do not cover a first
/// byte.
std::size_t encode_block_status(MutableBytes into, std::uint64_t cookie, Chunk chunk,
                                std::uint32_t context_id, std::span<const StatusExtent> extents,
                                std::uint32_t length_max);

}  // namespace berth::nbd
