// The numbers of the NBD protocol, and the limits that we put on it.
//
// Source: "The NBD protocol", doc/proto.md of github.com/NetworkBlockDevice/nbd. "NBD: X" in the
// comments of this module names its section X. Everything on the wire is big endian.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/units.h"

namespace berth::nbd {

// NBD: Newstyle negotiation, Request message, Simple reply message, Structured reply chunk message.
constexpr std::uint64_t init_magic = 0x4e42444d41474943;    // "NBDMAGIC"
constexpr std::uint64_t option_magic = 0x49484156454f5054;  // "IHAVEOPT"
constexpr std::uint64_t option_reply_magic = 0x0003e889045565a9;
constexpr std::uint32_t request_magic = 0x25609513;
constexpr std::uint32_t simple_reply_magic = 0x67446698;
constexpr std::uint32_t structured_reply_magic = 0x668e33ef;

// NBD: Handshake flags, Client flags.
constexpr std::uint16_t flag_fixed_newstyle = 1U << 0;
constexpr std::uint16_t flag_no_zeroes = 1U << 1;

// NBD: Transmission flags.
constexpr std::uint16_t flag_has_flags = 1U << 0;
constexpr std::uint16_t flag_read_only = 1U << 1;
constexpr std::uint16_t flag_send_flush = 1U << 2;
constexpr std::uint16_t flag_send_fua = 1U << 3;
constexpr std::uint16_t flag_send_trim = 1U << 5;
constexpr std::uint16_t flag_send_write_zeroes = 1U << 6;
constexpr std::uint16_t flag_send_df = 1U << 7;
constexpr std::uint16_t flag_can_multi_conn = 1U << 8;
constexpr std::uint16_t flag_send_fast_zero = 1U << 11;

/// NBD: Option types. What is not listed is answered with NBD_REP_ERR_UNSUP.
enum class Option : std::uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
  extended_headers = 11,
};

/// NBD: Option reply types.
enum class OptionReply : std::uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  error_unsupported = (1U << 31) + 1,
  error_policy = (1U << 31) + 2,
  error_invalid = (1U << 31) + 3,
  error_tls_required = (1U << 31) + 5,
  error_unknown = (1U << 31) + 6,
  error_shutdown = (1U << 31) + 7,
  error_too_big = (1U << 31) + 9,
};

/// NBD: Option reply types, NBD_REP_INFO.
enum class Info : std::uint16_t { export_ = 0, name = 1, description = 2, block_size = 3 };

/// NBD: Request types.
enum class Command : std::uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

// NBD: Command flags.
constexpr std::uint16_t command_flag_fua = 1U << 0;
constexpr std::uint16_t command_flag_no_hole = 1U << 1;
constexpr std::uint16_t command_flag_df = 1U << 2;
constexpr std::uint16_t command_flag_req_one = 1U << 3;
constexpr std::uint16_t command_flag_fast_zero = 1U << 4;

// NBD: Structured reply flags, Structured reply types.
constexpr std::uint16_t reply_flag_done = 1U << 0;
enum class ReplyType : std::uint16_t {
  none = 0,
  offset_data = 1,
  offset_hole = 2,
  block_status = 5,
  error = (1U << 15) + 1,
  error_offset = (1U << 15) + 2,
};

/// NBD: Error values.
enum class WireError : std::uint32_t {
  none = 0,
  permission = 1,  // EPERM
  io = 5,          // EIO
  no_memory = 12,  // ENOMEM
  invalid = 22,    // EINVAL
  no_space = 28,   // ENOSPC
  overflow = 75,   // EOVERFLOW
  unsupported = 95,
  shutdown = 108,
};

// Sizes on the wire, bytes.
constexpr std::size_t client_flags_size = 4;
constexpr std::size_t option_header_size = 16;
constexpr std::size_t option_reply_header_size = 20;
constexpr std::size_t export_name_padding_size = 124;
constexpr std::size_t request_size = 28;
constexpr std::size_t simple_reply_size = 16;
constexpr std::size_t chunk_header_size = 20;
constexpr std::size_t status_descriptor_size = 8;

// Limits. A string is at most 4096 bytes (NBD: Conventions), a payload at least 32 MiB (NBD: Size
// constraints).
constexpr std::size_t string_length_max = 4096;
constexpr std::size_t option_length_max = 64 * KiB;  // longer ones are skipped and refused, up to
constexpr std::size_t option_length_skipped_max = 4 * MiB;  // here; the client is cut off beyond
constexpr std::size_t options_max = 4096;                   // of one client, in its handshake
constexpr std::size_t context_queries_max = 256;            // in one option
constexpr std::size_t contexts_max = 64;                    // selected by one client
constexpr std::size_t information_requests_max = 256;       // in one option
constexpr std::size_t payload_length_max = 32 * MiB;        // of a read or write
constexpr std::size_t payload_length_skipped_max =
    64 * MiB;                                    // of a refused write; the client is cut off beyond
constexpr std::size_t error_message_max = 1024;  // bytes of text that go with an error
constexpr std::size_t status_extents_max = 32 * KiB;   // of one context in one reply
constexpr std::uint32_t block_minimum_max = 64 * KiB;  // NBD: Size constraints

}  // namespace berth::nbd
