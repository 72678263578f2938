#include "container/attach_frame.h"

#include <array>

#include <fmt/format.h>

namespace berth::container {

std::vector<std::byte> attach_head(AttachFrameType type, std::size_t payload) {
  std::vector<std::byte> head(attach_head_size);
  head[0] = static_cast<std::byte>(type);
  store_le(head.data() + 1, static_cast<std::uint32_t>(payload));
  return head;
}

std::vector<std::byte> attach_frame(AttachFrameType type, Bytes payload) {
  std::vector<std::byte> frame = attach_head(type, payload.size());
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

std::vector<std::byte> attach_size_frame(std::uint16_t rows, std::uint16_t columns) {
  std::array<std::byte, 4> payload{};
  store_le(payload.data(), rows);
  store_le(payload.data() + 2, columns);
  return attach_frame(AttachFrameType::size, payload);
}

std::vector<std::byte> attach_exit_frame(std::uint8_t code, std::uint8_t signal) {
  const std::array<std::byte, 2> payload = {std::byte{code}, std::byte{signal}};
  return attach_frame(AttachFrameType::exit, payload);
}

void AttachDecoder::append(Bytes bytes) {
  bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
  begin_ = 0;
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

Result<std::optional<AttachFrame>> AttachDecoder::next() {
  const Bytes waiting = Bytes(bytes_).subspan(begin_);
  if (waiting.size() < attach_head_size) return std::nullopt;
  const auto type = std::to_integer<std::uint8_t>(waiting[0]);
  const auto length = load_le<std::uint32_t>(waiting.data() + 1);
  if (type > static_cast<std::uint8_t>(AttachFrameType::failed) || length > attach_payload_max) {
    return failure(ErrorKind::protocol,
                   fmt::format("no frame of an attached client: type {}, {} bytes", type, length));
  }
  if (waiting.size() - attach_head_size < length) return std::nullopt;
  begin_ += attach_head_size + length;
  return AttachFrame{.type = static_cast<AttachFrameType>(type),
                     .payload = waiting.subspan(attach_head_size, length)};
}

}  // namespace berth::container
