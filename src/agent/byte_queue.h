// Bytes that go in at one end and out at the other. One piece of memory, so that what is in it can
// be looked at as a whole. Who uses it bounds it.
#pragma once

#include <vector>

#include "base/bytes.h"

namespace berth::agent {

class ByteQueue {
 public:
  std::size_t size() const { return bytes_.size() - begin_; }
  bool empty() const { return size() == 0; }
  /// Valid until the next change.
  Bytes view() const { return Bytes(bytes_).subspan(begin_); }

  void append(Bytes more) {
    if (begin_ > 0 && begin_ >= size()) {
      bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
      begin_ = 0;
    }
    bytes_.insert(bytes_.end(), more.begin(), more.end());
  }
  /// At most size().
  void drop(std::size_t count) {
    begin_ += count;
    if (begin_ == bytes_.size()) clear();
  }
  /// Gives large memory back.
  void clear() {
    constexpr std::size_t kept = 4096;
    begin_ = 0;
    bytes_.clear();
    if (bytes_.capacity() > kept) bytes_.shrink_to_fit();
  }

 private:
  std::vector<std::byte> bytes_;
  std::size_t begin_ = 0;
};

}  // namespace berth::agent
