#include "base/bytes.h"

#include <cstring>

namespace berth {

bool is_zero(Bytes bytes) {
  // Comparing the buffer with itself, shifted by the first word, lets memcmp do the scanning.
  constexpr std::size_t head = 16;
  const auto* data = bytes.data();
  for (std::size_t i = 0; i < bytes.size() && i < head; ++i) {
    if (data[i] != std::byte{0}) return false;
  }
  return bytes.size() <= head || std::memcmp(data, data + head, bytes.size() - head) == 0;
}

}  // namespace berth
