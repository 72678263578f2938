// What the host has left.
#pragma once

#include <cstdint>

namespace berth::machine {

/// Bytes that programs can have without anybody being swapped out: MemAvailable of /proc/meminfo,
/// proc(5). 0 where that does not say.
std::uint64_t available_memory();

}  // namespace berth::machine
