// Has the kernel read a part of a file into the page cache, and does not wait for it.
#pragma once

#include <cstdint>

#include "base/fd.h"
#include "base/result.h"

namespace berth {

Result<void> read_ahead(const Fd& file, std::uint64_t offset, std::uint64_t length);

}  // namespace berth
