#include "base/aligned_buffer.h"

#include <cstring>

#include "base/result.h"

namespace berth {

AlignedBuffer::AlignedBuffer(std::size_t size) : size_(size) {
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  memory_.reset(
      static_cast<std::byte*>(std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)));
  CHECK(memory_ != nullptr);
}

AlignedBuffer AlignedBuffer::zeroed(std::size_t size) {
  AlignedBuffer buffer(size);
  std::memset(buffer.data(), 0, size);
  return buffer;
}

}  // namespace berth
