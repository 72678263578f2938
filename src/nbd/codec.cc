#include "nbd/codec.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

namespace berth::nbd {
namespace {

/// Big-endian fields one after the other, into memory that is large enough.
class Fields {
 public:
  explicit Fields(std::byte* to) : begin_(to), at_(to) {}

  template <std::unsigned_integral T>
  Fields& put(T value) {
    store_be<T>(at_, value);
    at_ += sizeof value;
    return *this;
  }
  Fields& text(std::string_view text) {
    std::ranges::copy(as_bytes(text), at_);
    at_ += text.size();
    return *this;
  }
  std::size_t size() const { return static_cast<std::size_t>(at_ - begin_); }

 private:
  std::byte* begin_;
  std::byte* at_;
};

Fields chunk_header(std::byte* into, std::uint64_t cookie, Chunk chunk, ReplyType type,
                    std::size_t payload_length) {
  Fields fields(into);
  fields.put(structured_reply_magic);
  fields.put(chunk == Chunk::done ? reply_flag_done : std::uint16_t{0});
  fields.put(static_cast<std::uint16_t>(type));
  fields.put(cookie);
  fields.put(static_cast<std::uint32_t>(payload_length));
  return fields;
}

/// The flags that a command may have (NBD: Command flags).
std::uint16_t flags_of(Command command, const Session& session) {
  const auto exposed = [&](std::uint16_t flag, std::uint16_t by) {
    return (session.transmission_flags & by) != 0 ? flag : std::uint16_t{0};
  };
  const std::uint16_t any = command_flag_fua;
  switch (command) {
    case Command::read: return any | exposed(command_flag_df, flag_send_df);
    case Command::write_zeroes:
      return any | command_flag_no_hole | exposed(command_flag_fast_zero, flag_send_fast_zero);
    case Command::block_status: return any | command_flag_req_one;
    default: return any;
  }
}

Refusal check_command(const Request& request, const Session& session) {
  const bool read_only = (session.transmission_flags & flag_read_only) != 0;
  switch (request.type) {
    case Command::read: return {};
    case Command::write:
      if (read_only) return {WireError::permission, "the export is read-only"};
      return {};
    case Command::flush:
      if (request.offset != 0 || request.length != 0)
        return {WireError::invalid, "a flush has no range"};
      return {};
    case Command::trim:
      if (read_only) return {WireError::permission, "the export is read-only"};
      if ((session.transmission_flags & flag_send_trim) == 0)
        return {WireError::invalid, "trim is not offered"};
      return {};
    case Command::write_zeroes:
      if (read_only) return {WireError::permission, "the export is read-only"};
      if ((session.transmission_flags & flag_send_write_zeroes) == 0) {
        return {WireError::invalid, "write zeroes is not offered"};
      }
      return {};
    case Command::block_status:
      if (session.context_count == 0)
        return {WireError::invalid, "no metadata context was selected"};
      if (request.length == 0) return {WireError::invalid, "a block status request needs a length"};
      return {};
    case Command::cache:
    case Command::disconnect: break;
  }
  return {WireError::invalid, "unknown command"};
}

Refusal check_payload(const Request& request, const Session& session) {
  if (request.type != Command::read && request.type != Command::write) return {};
  if (request.length <= std::min<std::size_t>(session.block_maximum, payload_length_max)) return {};
  // Where replies can be cut to pieces, this error says "ask for less" (NBD: Request types,
  // NBD_CMD_READ).
  const bool may_shrink = request.type == Command::read && session.structured_replies;
  return {may_shrink ? WireError::overflow : WireError::invalid,
          "the request is larger than the maximum payload"};
}

Refusal check_range(const Request& request, const Session& session) {
  if (request.type == Command::flush) return {};
  if (request.offset > session.size || request.length > session.size - request.offset) {
    const bool grows = request.type == Command::write || request.type == Command::write_zeroes;
    return {grows ? WireError::no_space : WireError::invalid,
            "the request reaches beyond the end of the export"};
  }
  if (((request.offset | request.length) & (session.block_minimum - 1)) != 0) {
    return {WireError::invalid, "the request is not aligned to the minimum block size"};
  }
  return {};
}

}  // namespace

Result<Request> parse_request(std::span<const std::byte, request_size> bytes) {
  const std::byte* from = bytes.data();
  if (const auto magic = load_be<std::uint32_t>(from); magic != request_magic) {
    return failure(ErrorKind::protocol,
                   fmt::format("a request begins with {:#010x}, not with its magic number", magic));
  }
  return Request{.flags = load_be<std::uint16_t>(from + 4),
                 .type = static_cast<Command>(load_be<std::uint16_t>(from + 6)),
                 .cookie = load_be<std::uint64_t>(from + 8),
                 .offset = load_be<std::uint64_t>(from + 16),
                 .length = load_be<std::uint32_t>(from + 24)};
}

std::uint16_t transmission_flags(const ExportInfo& info, bool structured_replies) {
  unsigned flags = flag_has_flags | flag_send_flush | flag_send_fua | flag_can_multi_conn;
  if (structured_replies) flags |= flag_send_df;
  if (info.read_only) return static_cast<std::uint16_t>(flags | flag_read_only);
  if (info.can_discard) flags |= flag_send_trim;
  if (info.can_zero) flags |= flag_send_write_zeroes;
  if (info.can_zero && info.can_fast_zero) flags |= flag_send_fast_zero;
  return static_cast<std::uint16_t>(flags);
}

Refusal check_request(const Request& request, const Session& session) {
  if (const Refusal refusal = check_command(request, session)) return refusal;
  if ((request.flags & ~flags_of(request.type, session)) != 0) {
    return {WireError::invalid, "a flag that this command does not have here"};
  }
  if (const Refusal refusal = check_payload(request, session)) return refusal;
  return check_range(request, session);
}

WireError wire_error(ErrorKind kind, const Request& request) {
  switch (kind) {
    case ErrorKind::no_space:
    case ErrorKind::limit: return WireError::no_space;  // EOVERFLOW is for what a client can cut up
    case ErrorKind::read_only:
    case ErrorKind::permission: return WireError::permission;
    case ErrorKind::invalid_argument: return WireError::invalid;
    case ErrorKind::unsupported:
      // The protocol has this error for one purpose (NBD: Request types, NBD_CMD_WRITE_ZEROES).
      return request.type == Command::write_zeroes && request.has(command_flag_fast_zero)
                 ? WireError::unsupported
                 : WireError::invalid;
    default: return WireError::io;
  }
}

std::size_t encode_simple_reply(ReplyHeader into, std::uint64_t cookie, WireError error) {
  return Fields(into.data())
      .put(simple_reply_magic)
      .put(static_cast<std::uint32_t>(error))
      .put(cookie)
      .size();
}

std::size_t encode_none(ReplyHeader into, std::uint64_t cookie) {
  return chunk_header(into.data(), cookie, Chunk::done, ReplyType::none, 0).size();
}

std::size_t encode_offset_data(ReplyHeader into, std::uint64_t cookie, Chunk chunk,
                               std::uint64_t offset, std::uint32_t length) {
  return chunk_header(into.data(), cookie, chunk, ReplyType::offset_data, sizeof offset + length)
      .put(offset)
      .size();
}

std::size_t encode_offset_hole(ReplyHeader into, std::uint64_t cookie, Chunk chunk,
                               std::uint64_t offset, std::uint32_t length) {
  return chunk_header(into.data(), cookie, chunk, ReplyType::offset_hole,
                      sizeof offset + sizeof length)
      .put(offset)
      .put(length)
      .size();
}

std::size_t encode_error(MutableBytes into, std::uint64_t cookie, Chunk chunk, WireError error,
                         std::string_view message, std::optional<std::uint64_t> offset) {
  CHECK(into.size() >= error_chunk_size_max && error != WireError::none);
  message = message.substr(0, error_message_max);
  const std::size_t payload_length = 6 + message.size() + (offset ? sizeof *offset : 0);
  const ReplyType type = offset ? ReplyType::error_offset : ReplyType::error;
  Fields fields = chunk_header(into.data(), cookie, chunk, type, payload_length);
  fields.put(static_cast<std::uint32_t>(error))
      .put(static_cast<std::uint16_t>(message.size()))
      .text(message);
  if (offset) fields.put(*offset);
  return fields.size();
}

std::size_t encode_block_status(MutableBytes into, std::uint64_t cookie, Chunk chunk,
                                std::uint32_t context_id, std::span<const StatusExtent> extents,
                                std::uint32_t length_max) {
  CHECK(into.size() >= block_status_size(extents.size()));
  std::byte* descriptor = into.data() + block_status_size(0);
  std::uint32_t left = length_max;
  std::uint32_t joined = 0;  // length of the descriptor that `descriptor` is behind
  std::uint32_t flags = 0;
  for (const StatusExtent& extent : extents) {
    const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(extent.length, left));
    if (length == 0) break;
    left -= length;
    if (joined != 0 && extent.flags == flags) {
      joined += length;
    } else {
      descriptor += status_descriptor_size;
      joined = length;
      flags = extent.flags;
    }
    Fields(descriptor - status_descriptor_size).put(joined).put(flags);
  }
  const auto size = static_cast<std::size_t>(descriptor - into.data());
  if (size == block_status_size(0)) return 0;
  chunk_header(into.data(), cookie, chunk, ReplyType::block_status, size - chunk_header_size)
      .put(context_id);
  return size;
}

}  // namespace berth::nbd
