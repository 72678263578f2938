#include "agent/frame.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/result.h"

namespace berth::agent {
namespace {

// No byte of either is zero: zeros in the place of an end are never one.
constexpr std::uint32_t begin_mark = 0xC14A27BE;
constexpr std::uint32_t end_mark = 0x3EB5D841;

struct Header {
  FrameType type{};
  std::uint32_t channel = 0;
  std::size_t length = 0;
};

/// Nothing if the bytes, of which there are enough, are no header.
std::optional<Header> decode_header(Bytes bytes) {
  Reader reader(bytes.first(frame_header_size));
  const auto mark = reader.le<std::uint32_t>();
  const auto type = reader.le<std::uint8_t>();
  const auto reserved = reader.raw(3);
  const auto channel = reader.le<std::uint32_t>();
  const auto length = reader.le<std::uint32_t>();
  if (mark != begin_mark || type < static_cast<std::uint8_t>(FrameType::hello) ||
      type > static_cast<std::uint8_t>(FrameType::stop) || length > frame_payload_max ||
      !is_zero(reserved)) {
    return std::nullopt;
  }
  return Header{static_cast<FrameType>(type), channel, length};
}

bool has_end(Bytes frame) {
  return load_le<std::uint32_t>(frame.data() + frame.size() - frame_end_size) == end_mark;
}

std::size_t leading_zeros(Bytes bytes) {
  const auto found = std::ranges::find_if(bytes, [](std::byte b) { return b != std::byte{0}; });
  return static_cast<std::size_t>(found - bytes.begin());
}

}  // namespace

void append_frame(ByteQueue& output, FrameType type, std::uint32_t channel, Bytes payload) {
  CHECK(payload.size() <= frame_payload_max);
  std::array<std::byte, frame_header_size> header{};
  Writer writer(header);
  writer.le(begin_mark);
  writer.le(static_cast<std::uint32_t>(type));  // and three zeros
  writer.le(channel);
  writer.le(static_cast<std::uint32_t>(payload.size()));
  std::array<std::byte, frame_end_size> end{};
  store_le(end.data(), end_mark);
  output.append(header);
  output.append(payload);
  output.append(end);
}

std::vector<std::byte> encode(const Greeting& greeting) {
  std::vector<std::byte> bytes(greeting_size);
  Writer writer(bytes);
  writer.le(greeting.token);
  writer.le(greeting.version);
  writer.le(greeting.features);
  return bytes;
}

std::optional<Greeting> decode_greeting(Bytes payload) {
  Reader reader(payload);
  Greeting greeting;
  greeting.token = reader.le<std::uint64_t>();
  greeting.version = reader.le<std::uint32_t>();
  greeting.features = reader.le<std::uint32_t>();
  if (!reader.ok()) return std::nullopt;
  return greeting;
}

void FrameDecoder::expect(std::uint64_t token) {
  token_ = token;
  synchronized_ = false;
}

std::optional<Frame> FrameDecoder::next() {
  buffer_.drop(std::exchange(taken_, 0));
  while (true) {
    if (synchronized_) {
      buffer_.drop(leading_zeros(buffer_.view()));
    } else if (!drop_to_greeting()) {
      return std::nullopt;
    }
    const Bytes bytes = buffer_.view();
    if (bytes.size() < frame_header_size) return std::nullopt;
    const auto header = decode_header(bytes);
    if (header) {
      const std::size_t size = frame_header_size + header->length + frame_end_size;
      if (bytes.size() < size) return std::nullopt;
      if (has_end(bytes.first(size))) {
        const Frame frame{header->type, header->channel,
                          bytes.subspan(frame_header_size, header->length)};
        if (synchronized_ || is_greeting(frame)) {
          synchronized_ = true;
          taken_ = size;
          return frame;
        }
      }
    }
    synchronized_ = false;
    buffer_.drop(1);
    ++dropped_;
  }
}

/// Drops what cannot be the header of a greeting. False: more bytes are needed.
bool FrameDecoder::drop_to_greeting() {
  while (true) {
    const Bytes bytes = buffer_.view();
    const auto first = static_cast<std::byte>(begin_mark & 0xFF);
    const auto skipped = static_cast<std::size_t>(std::ranges::find(bytes, first) - bytes.begin());
    dropped_ += skipped - std::min(skipped, leading_zeros(bytes));
    if (bytes.size() - skipped < frame_header_size) {
      buffer_.drop(skipped);
      return false;
    }
    const auto header = decode_header(bytes.subspan(skipped));
    // A hello of any other length, and a welcome for somebody else, would have us wait for it.
    const bool fits = header && header->type == greeting_ && header->length >= greeting_size &&
                      (greeting_ != FrameType::hello || header->length == greeting_size) &&
                      (!token_ || header->channel == static_cast<std::uint32_t>(*token_));
    buffer_.drop(skipped);
    if (fits) return true;
    buffer_.drop(1);
    ++dropped_;
  }
}

bool FrameDecoder::is_greeting(const Frame& frame) const {
  const auto greeting = decode_greeting(frame.payload);
  return frame.type == greeting_ && greeting &&
         frame.channel == static_cast<std::uint32_t>(greeting->token) &&
         (!token_ || *token_ == greeting->token);
}

}  // namespace berth::agent
