// ReceiveBuffer: what has been received and not yet been used. Large, so that one call to the
// kernel brings many requests; it is emptied from the front and begins again at its (cache-warm)
// start whenever it is empty.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/bytes.h"

namespace berth::nbd {

class ReceiveBuffer {
 public:
  explicit ReceiveBuffer(std::size_t size) : memory_(size) {}

  Bytes unread() const { return Bytes(memory_.bytes()).subspan(begin_, end_ - begin_); }
  std::size_t size() const { return end_ - begin_; }
  const std::byte* data() const { return memory_.data() + begin_; }

  void consume(std::size_t length) {
    begin_ += length;
    if (begin_ == end_) begin_ = end_ = 0;
  }

  /// Room for more, behind what is unread, at most `length_max` bytes. Call received() with what
  /// came.
  MutableBytes room(std::size_t length_max) {
    if (begin_ != 0) {
      std::memmove(memory_.data(), memory_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    return memory_.bytes().subspan(end_, std::min(length_max, memory_.size() - end_));
  }
  void received(std::size_t length) { end_ += length; }

 private:
  AlignedBuffer memory_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace berth::nbd
