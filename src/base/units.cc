#include "base/units.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include <fmt/chrono.h>
#include <fmt/format.h>

namespace berth {

Result<std::uint64_t> parse_size(std::string_view text) {
  const std::string_view whole = text;
  const auto refuse = [whole] {
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("'{}' is not a size: write a number of bytes, or one with K, M, G or T",
                    whole));
  };
  if (text.ends_with("iB")) text.remove_suffix(2);
  if (text.empty()) return refuse();

  std::uint64_t unit = 1;
  switch (text.back()) {
    case 'K':
    case 'k': unit = KiB; break;
    case 'M':
    case 'm': unit = MiB; break;
    case 'G':
    case 'g': unit = GiB; break;
    case 'T':
    case 't': unit = TiB; break;
    default: break;
  }
  if (unit != 1) text.remove_suffix(1);
  if (text.empty()) return refuse();

  std::uint64_t count = 0;
  const auto* end = text.data() + text.size();
  if (auto [stop, code] = std::from_chars(text.data(), end, count);
      code == std::errc{} && stop == end) {
    if (count > std::numeric_limits<std::uint64_t>::max() / unit) return refuse();
    return count * unit;
  }
  double fraction = 0;
  auto [stop, code] = std::from_chars(text.data(), end, fraction, std::chars_format::fixed);
  if (code != std::errc{} || stop != end || unit == 1 || fraction < 0) return refuse();
  const double bytes = fraction * static_cast<double>(unit);
  if (bytes >= 9.2e18 || bytes != std::floor(bytes)) return refuse();
  return static_cast<std::uint64_t>(bytes);
}

std::string format_size(std::uint64_t bytes) {
  if (bytes >= TiB)
    return fmt::format("{:.1f} TiB", static_cast<double>(bytes) / static_cast<double>(TiB));
  if (bytes >= GiB)
    return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / static_cast<double>(GiB));
  if (bytes >= MiB)
    return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / static_cast<double>(MiB));
  if (bytes >= KiB)
    return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / static_cast<double>(KiB));
  return fmt::format("{} B", bytes);
}

Result<std::chrono::milliseconds> parse_duration(std::string_view text) {
  constexpr double days_max = 3653;
  constexpr double day_ms = 24.0 * 60 * 60 * 1000;
  struct Unit {
    std::string_view suffix;
    double ms;
  };
  constexpr std::array units = {Unit{"ms", 1}, Unit{"s", 1000}, Unit{"m", 60.0 * 1000},
                                Unit{"h", 60.0 * 60 * 1000}, Unit{"d", day_ms}};
  for (const Unit& unit : units) {
    if (!text.ends_with(unit.suffix)) continue;
    const std::string_view digits = text.substr(0, text.size() - unit.suffix.size());
    double count = 0;
    const auto* end = digits.data() + digits.size();
    const auto [stop, code] = std::from_chars(digits.data(), end, count, std::chars_format::fixed);
    if (code != std::errc{} || stop != end) break;
    const double ms = count * unit.ms;
    if (!(ms >= 0 && ms <= days_max * day_ms)) break;
    return std::chrono::milliseconds(std::llround(ms));
  }
  return failure(ErrorKind::invalid_argument,
                 fmt::format("'{}' is not a duration: write a number with ms, s, m, h or d, such "
                             "as 90s or 5m",
                             text));
}

std::string format_time(std::chrono::system_clock::time_point time) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}Z",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(time)));
}

}  // namespace berth
