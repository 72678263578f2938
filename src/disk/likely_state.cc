#include "disk/likely_state.h"

#include <algorithm>

namespace berth::disk {

Result<bool> has_data(File& data, std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t size = TRY(data.size());
  if (offset >= size) return false;
  return TRY(data.next_data(offset)) < std::min(size, offset + length);
}

BlockState likely_state(std::optional<BlockState> older, bool has_data, bool has_backing) {
  if (has_data) return BlockState::present;
  return older.value_or(has_backing ? BlockState::absent : BlockState::present);
}

}  // namespace berth::disk
