#include "container/log_format.h"

#include <algorithm>
#include <ctime>

#include <fmt/chrono.h>
#include <fmt/format.h>

namespace berth::container {
namespace {

constexpr std::size_t time_size = 30;
constexpr std::string_view names[] = {"stdout", "stderr"};

}  // namespace

std::string log_time(std::chrono::system_clock::time_point time) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(time);
  const auto nanoseconds =
      std::chrono::duration_cast<std::chrono::nanoseconds>(time - seconds).count();
  const std::time_t whole = std::chrono::system_clock::to_time_t(seconds);
  std::tm parts{};
  ::gmtime_r(&whole, &parts);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:09}Z", parts, nanoseconds);
}

std::string format_log_entries(std::string_view at, LogStream stream, std::string_view written) {
  std::string entries;
  while (!written.empty()) {
    const std::size_t newline = written.find('\n');
    const std::size_t length = std::min({newline, written.size(), log_text_max});
    const bool whole = length == newline;
    fmt::format_to(std::back_inserter(entries), "{} {} {} {}\n", at,
                   names[static_cast<std::size_t>(stream)], whole ? 'F' : 'P',
                   written.substr(0, length));
    written.remove_prefix(length + (whole ? 1 : 0));
  }
  return entries;
}

std::optional<LogEntry> parse_log_line(std::string_view line) {
  LogEntry entry;
  const auto word = [&line] {
    const std::size_t end = std::min(line.find(' '), line.size());
    const std::string_view found = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
    return found;
  };
  entry.at = word();
  const std::string_view stream = word();
  // The text may be empty, but the blank before it is always there.
  if (line.size() < 2 || line[1] != ' ' || (line[0] != 'F' && line[0] != 'P')) return std::nullopt;
  if (entry.at.size() != time_size || !entry.at.ends_with('Z')) return std::nullopt;
  if (stream != names[0] && stream != names[1]) return std::nullopt;
  entry.stream = stream == names[0] ? LogStream::output : LogStream::errors;
  entry.partial = line[0] == 'P';
  entry.text = line.substr(2);
  return entry;
}

}  // namespace berth::container
