// BufferPool: page-aligned memory for payloads, kept for the next request instead of going back to
// malloc.
//
// One loop. The pool outlives its buffers. What is lent is bounded by those who borrow (Limits in
// transmission.h), what is kept by `kept_bytes_max`.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/bytes.h"
#include "base/units.h"
#include "nbd/protocol.h"

namespace berth::nbd {

class BufferPool {
 public:
  static constexpr std::size_t kept_bytes_max = 64 * MiB;

  /// Memory on loan; goes back by itself.
  class Buffer {
   public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)),
          memory_(std::move(other.memory_)),
          length_(other.length_) {}
    Buffer& operator=(Buffer&& other) noexcept {
      give_back();
      pool_ = std::exchange(other.pool_, nullptr);
      memory_ = std::move(other.memory_);
      length_ = other.length_;
      return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { give_back(); }

    /// As many bytes as were asked for.
    MutableBytes bytes() const { return memory_.first(length_); }

   private:
    friend class BufferPool;
    Buffer(BufferPool& pool, AlignedBuffer memory, std::size_t length)
        : pool_(&pool), memory_(std::move(memory)), length_(length) {}
    void give_back() {
      if (pool_ != nullptr) std::exchange(pool_, nullptr)->put(std::move(memory_));
    }

    BufferPool* pool_ = nullptr;
    AlignedBuffer memory_;
    std::size_t length_ = 0;
  };

  BufferPool() = default;
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// `length` bytes with any content; at most payload_length_max. Ends the process when there is no
  /// memory.
  Buffer take(std::size_t length);

 private:
  static constexpr std::size_t smallest = AlignedBuffer::alignment;
  static constexpr std::size_t class_count = std::bit_width(payload_length_max / smallest);

  void put(AlignedBuffer memory);

  std::array<std::vector<AlignedBuffer>, class_count>
      kept_;  // of `smallest` bytes, twice that, and so on
  std::size_t kept_bytes_ = 0;
};

}  // namespace berth::nbd
