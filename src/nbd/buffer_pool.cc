#include "nbd/buffer_pool.h"

#include <algorithm>

#include "base/result.h"

namespace berth::nbd {

BufferPool::Buffer BufferPool::take(std::size_t length) {
  if (length == 0) return {};
  const std::size_t size = std::bit_ceil(std::max(length, smallest));
  const auto index = static_cast<std::size_t>(std::countr_zero(size / smallest));
  CHECK(index < class_count);
  std::vector<AlignedBuffer>& kept = kept_[index];
  if (kept.empty()) return {*this, AlignedBuffer(size), length};
  AlignedBuffer memory = std::move(kept.back());  // the one used last is the warmest
  kept.pop_back();
  kept_bytes_ -= size;
  return {*this, std::move(memory), length};
}

void BufferPool::put(AlignedBuffer memory) {
  const std::size_t size = memory.size();
  if (kept_bytes_ + size > kept_bytes_max) return;
  kept_bytes_ += size;
  kept_[static_cast<std::size_t>(std::countr_zero(size / smallest))].push_back(std::move(memory));
}

}  // namespace berth::nbd
