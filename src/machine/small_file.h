// Small text files of the keeper's: read whole, replaced whole. Blocking.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::machine {

constexpr std::size_t small_file_size_max = 1 << 20;  // bytes

/// not_found; `limit` if it is larger than it may be.
Result<std::string> read_small_file(const std::string& path);

/// Durable: after a power loss it has its old content, or the new one. Mode 0600.
Result<void> write_small_file(const std::string& path, std::string_view text);

}  // namespace berth::machine
