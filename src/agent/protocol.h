// The words of the agent's protocol: numbers that both sides agree on.
// docs/formats/container-agent.md says what they mean, byte by byte, and is what a client can be
// written from.
//
// Versions: a new operation, event or optional field is a feature bit; `protocol_version` changes
// when an old peer would misunderstand. Numbers are never used again.
#pragma once

#include <cstddef>
#include <cstdint>

namespace berth::agent {

constexpr std::uint32_t protocol_version = 1;
constexpr const char* port_name = "org.berth.agent.0";

/// Feature bits of hello and welcome: what a side knows beyond version 1.
constexpr std::uint32_t features_known = 0;

// Limits of the wire, in bytes.
constexpr std::size_t frame_payload_max = std::size_t{128} << 10;
constexpr std::size_t data_max = std::size_t{16} << 10;          // of a stream, in one frame
constexpr std::size_t file_piece_max = std::size_t{64} << 10;    // in one request or answer
constexpr std::size_t stream_window = std::size_t{64} << 10;     // that an input begins with
constexpr std::size_t output_kept_max = std::size_t{128} << 10;  // of a stream, not acknowledged
constexpr std::size_t output_target = std::size_t{64} << 10;     // frames made ahead of the wire
constexpr std::size_t control_backlog_max = std::size_t{512} << 10;  // then nothing more is read
constexpr std::size_t entropy_max = 512;
// How many.
constexpr std::size_t processes_max = 128;  // running, or ended and not yet forgotten
constexpr std::size_t connections_max = 256;
constexpr std::size_t transfers_max = 16;  // of archives
constexpr std::size_t streams_max = 768;
static_assert(3 * processes_max + connections_max + transfers_max <= streams_max,
              "what is at its limit takes no streams away from the others");

enum class FrameType : std::uint8_t {
  hello = 1,    // host
  welcome = 2,  // agent
  request = 3,  // host; channel: its number
  answer = 4,   // agent; channel: the request's number
  event = 5,    // agent; channel: a process, a stream, or 0
  data = 6,     // either; channel: a stream, from here on
  credit = 7,   // either, of what it receives
  end = 8,      // either, of what it sends
  stop = 9,     // either, of what it receives
};

enum class Operation : std::uint16_t {
  start = 1,
  signal = 2,
  resize = 3,
  list = 4,
  forget = 5,
  write_file = 6,
  read_file = 7,
  set_clock = 8,
  set_identity = 9,
  configure = 10,
  sync = 11,
  power_off = 12,
  connect = 13,
  close_stream = 14,
  mount = 15,
  freeze = 16,
  thaw = 17,
  become_clone = 18,
  archive_read = 19,
  archive_write = 20,
  rehearse = 21,
};

enum class EventKind : std::uint16_t {
  ended = 1,              // a process
  connection_failed = 2,  // after it was connected
};

/// What a field of a request, an answer or an event is. Numbers are 8 bytes.
enum class Tag : std::uint16_t {
  error_kind = 1,
  error_message = 2,
  process = 3,
  argument = 4,
  environment = 5,
  working_directory = 6,
  user = 7,
  flags = 8,
  rows = 9,
  columns = 10,
  signal = 11,
  scope = 12,
  exit_code = 13,
  exit_signal = 14,
  shell_status = 15,
  path = 16,
  offset = 17,
  length = 18,
  content = 19,
  mode = 20,
  owner = 21,
  group = 22,
  size = 23,
  hostname = 24,
  machine_id = 25,
  entropy = 26,
  time_ns = 27,
  hosts = 28,
  resolver = 29,
  address = 30,
  gateway = 31,
  hardware_address = 32,
  interface = 33,
  linger_ms = 34,
  kernel = 35,
  boot_error = 36,
  boot_id = 37,
  guest_pid = 38,
  input_received = 39,
  input_limit = 40,
  stream = 41,
  output_kept_from = 42,
  output_produced = 43,
  orphans_reaped = 44,
  grace_ms = 45,
  port = 46,
  timeout_ms = 47,
  serial = 48,
  file_system = 49,
  connection = 50,
  transfer = 51,
  frozen = 52,
  hook = 53,
  hook_output = 54,
};
constexpr Tag last_tag = Tag::hook_output;
/// A field whose tag has this bit may be passed over by who does not know it.
constexpr std::uint16_t optional_tag = 0x8000;

// Tag::flags of `start`.
constexpr std::uint64_t start_terminal = 1;
constexpr std::uint64_t start_main = 2;
constexpr std::uint64_t start_with_input = 4;
// Tag::flags of `write_file`.
constexpr std::uint64_t file_truncate = 1;
// Tag::flags of `mount`.
constexpr std::uint64_t mount_read_only = 1;
// Tag::flags of `archive_write`.
constexpr std::uint64_t archive_keep_owners = 1;

// Tag::scope of `signal`.
constexpr std::uint64_t scope_process = 0;
constexpr std::uint64_t scope_group = 1;

// Streams of a process: its number times four, and
constexpr std::uint32_t stream_input = 0;  // a terminal's only stream, both ways
constexpr std::uint32_t stream_output = 1;
constexpr std::uint32_t stream_errors = 2;
constexpr std::uint32_t process_number_max = (1U << 24) - 1;
/// Streams from here on belong to no process: connections and archives, whose numbers the host
/// chooses.
constexpr std::uint32_t first_free_stream = 1U << 31;

constexpr std::uint32_t stream_of(std::uint32_t process, std::uint32_t which) {
  return process * 4 + which;
}

}  // namespace berth::agent
