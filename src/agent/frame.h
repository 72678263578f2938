// Frames: how the byte stream of the port is cut, and how a side finds its place in it again.
//
// The port keeps no connections apart: what one host has sent may still be on its way when the next
// one connects, and ends anywhere. So every frame ends with a mark, a host begins with more zeros
// than a frame can have (whatever was open ends in them, without its mark, and is dropped), and a
// side that has lost its place looks at every byte for one frame only, a greeting.
//
// Pure. The decoder keeps at most one frame and what was appended; bytes that make no sense are
// dropped and counted, never an error.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "agent/byte_queue.h"
#include "agent/protocol.h"

namespace berth::agent {

constexpr std::size_t frame_header_size = 16;
constexpr std::size_t frame_end_size = 4;
constexpr std::size_t frame_size_max = frame_header_size + frame_payload_max + frame_end_size;
/// Zeros that a host begins with.
constexpr std::size_t resynchronization_size = frame_size_max;

struct Frame {
  FrameType type{};
  std::uint32_t channel = 0;
  Bytes payload;
};

/// `payload` has at most frame_payload_max bytes.
void append_frame(ByteQueue& output, FrameType type, std::uint32_t channel, Bytes payload);

/// What hello and welcome begin with.
struct Greeting {
  std::uint64_t token = 0;
  std::uint32_t version = protocol_version;
  std::uint32_t features = features_known;
  friend bool operator==(const Greeting&, const Greeting&) = default;
};
constexpr std::size_t greeting_size = 16;

std::vector<std::byte> encode(const Greeting& greeting);
/// The first greeting_size bytes of `payload`; nothing if there are fewer.
std::optional<Greeting> decode_greeting(Bytes payload);

class FrameDecoder {
 public:
  /// `greeting`: the frame that it looks for at first, and whenever it has lost its place.
  explicit FrameDecoder(FrameType greeting) : greeting_(greeting) {}

  /// Only a greeting with this token counts from now on, and everything before it is dropped.
  void expect(std::uint64_t token);
  void append(Bytes bytes) { buffer_.append(bytes); }
  /// The next whole frame; its payload is valid until the next call of anything.
  std::optional<Frame> next();
  /// Bytes that were dropped, apart from zeros between frames.
  std::uint64_t dropped() const { return dropped_; }
  bool is_synchronized() const { return synchronized_; }

 private:
  bool drop_to_greeting();
  bool is_greeting(const Frame& frame) const;

  FrameType greeting_;
  std::optional<std::uint64_t> token_;
  bool synchronized_ = false;
  ByteQueue buffer_;
  std::size_t taken_ = 0;  // of the buffer: the frame that was given out last
  std::uint64_t dropped_ = 0;
};

}  // namespace berth::agent
