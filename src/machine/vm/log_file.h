// Logs that a process of somebody else's writes for as long as a machine runs: QEMU's words, and a
// guest's console. Both lie in memory (/run), and the guest decides how much it says.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace berth::machine {

constexpr std::uint64_t log_size_max = std::uint64_t{4} << 20;
constexpr std::uint64_t log_size_kept = std::uint64_t{1} << 20;

/// Of a log that has more than log_size_max bytes, the newest log_size_kept are left, from the
/// beginning of a line. Whoever writes it appends (O_APPEND) and goes on; lines that come in this
/// very instant may be lost. No log is no error; what is no regular file is left alone: the
/// directory may be that of a process which is not trusted.
Result<void> trim_log(const std::string& path);

}  // namespace berth::machine
