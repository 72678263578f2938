// Memory for direct I/O: page aligned, owned, not initialised.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "base/bytes.h"

namespace berth {

class AlignedBuffer {
 public:
  static constexpr std::size_t alignment = 4096;

  AlignedBuffer() = default;
  /// `size` bytes; ends the process when there is no memory.
  explicit AlignedBuffer(std::size_t size);
  /// `size` zero bytes.
  static AlignedBuffer zeroed(std::size_t size);

  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  MutableBytes bytes() const { return {memory_.get(), size_}; }
  MutableBytes first(std::size_t length) const { return bytes().first(length); }
  explicit operator bool() const { return memory_ != nullptr; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace berth
