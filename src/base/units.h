// Sizes as people write them (binary suffixes), durations likewise, and times as machines exchange
// them (RFC 3339, UTC).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace berth {

constexpr std::uint64_t KiB = 1024;
constexpr std::uint64_t MiB = 1024 * KiB;
constexpr std::uint64_t GiB = 1024 * MiB;
constexpr std::uint64_t TiB = 1024 * GiB;

/// "64K", "10G", "1.5T", "4096", also with "iB"; a count of bytes. invalid_argument otherwise.
Result<std::uint64_t> parse_size(std::string_view text);

/// "10.0 GiB", for people.
std::string format_size(std::uint64_t bytes);

/// "500ms", "90s", "5m", "2h", "1d", also with a fraction ("1.5h"); from 0 to ten years.
/// invalid_argument otherwise.
Result<std::chrono::milliseconds> parse_duration(std::string_view text);

/// "2026-11-23T06:18:00Z".
std::string format_time(std::chrono::system_clock::time_point time);

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t multiple) {
  return value / multiple * multiple;
}
constexpr std::uint64_t divide_up(std::uint64_t value, std::uint64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace berth
