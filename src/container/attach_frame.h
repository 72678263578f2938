// The frames of a keeper's attach socket (docs/formats/containers.md, "Attach"), for both sides.
//
// Pure. Bytes from the other side may hold anything: `protocol` for what is no frame.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace berth::container {

constexpr std::size_t attach_payload_max = std::size_t{64} << 10;
constexpr std::size_t attach_head_size = 5;
constexpr std::size_t attach_line_max = std::size_t{256} << 10;  // bytes, of request and answer

enum class AttachFrameType : std::uint8_t {
  input = 0,
  output = 1,
  errors = 2,
  size = 3,
  signal = 4,
  exit = 5,
  failed = 6,
};

struct AttachFrame {
  AttachFrameType type{};
  Bytes payload;
};

/// The head of a frame with so many bytes of payload, at most attach_payload_max.
std::vector<std::byte> attach_head(AttachFrameType type, std::size_t payload);
/// All of it.
std::vector<std::byte> attach_frame(AttachFrameType type, Bytes payload);
std::vector<std::byte> attach_size_frame(std::uint16_t rows, std::uint16_t columns);
std::vector<std::byte> attach_exit_frame(std::uint8_t code, std::uint8_t signal);

/// Takes a stream of bytes apart.
class AttachDecoder {
 public:
  void append(Bytes bytes);
  /// The next whole frame; its payload is valid until the next call of append() or next().
  Result<std::optional<AttachFrame>> next();

 private:
  std::vector<std::byte> bytes_;
  std::size_t begin_ = 0;
};

}  // namespace berth::container
