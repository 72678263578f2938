#include "container/log_lines.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace berth::container {
namespace {

constexpr std::size_t piece = std::size_t{64} << 10;

}  // namespace

LogLines::LogLines(std::string path)
    : path_(std::move(path)), reader_(path_, LogReader::From::start) {}

Result<void> LogLines::keep_last(std::size_t count) {
  LogLines all(path_);
  std::size_t found = 0;
  TRY(all.read_all([&found](const LogEntry&, bool begins) { found += begins ? 1 : 0; }));
  skipped_ = found - std::min(found, count);
  return {};
}

Result<bool> LogLines::read(const Take& take) {
  std::string_view rest = TRY(reader_.read(piece));
  const bool any = !rest.empty();
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    if (const auto entry = parse_log_line(rest.substr(0, end))) {
      Line& line = lines_[static_cast<std::size_t>(entry->stream)];
      const bool begins = !std::exchange(line.goes_on, entry->partial);
      if (begins) line.is_skipped = skipped_ > 0;
      if (begins && skipped_ > 0) --skipped_;
      if (!line.is_skipped) take(*entry, begins);
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return any;
}

Result<void> LogLines::read_all(const Take& take) {
  while (TRY(read(take))) {
  }
  return {};
}

}  // namespace berth::container
