// The lines of a container's log (docs/formats/containers.md): the format of Kubernetes (CRI).
//
// Pure. A log may hold anything: what is no entry is passed over.
// Source: kubernetes/design-proposals-archive, node/kubelet-cri-logging.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace berth::container {

constexpr std::size_t log_text_max = std::size_t{16} << 10;  // bytes of text in one entry

enum class LogStream : std::uint8_t { output, errors };

struct LogEntry {
  std::string_view at;  // RFC 3339 with nanoseconds, UTC: two of them compare as texts
  LogStream stream{};
  bool partial = false;  // its line goes on in the next entry of the stream
  std::string_view text;
};

/// "2026-11-27T17:20:57.693412345Z".
std::string log_time(std::chrono::system_clock::time_point time);

/// What the process wrote, as entries: one for each line, and one that is partial for what has no
/// end so far.
std::string format_log_entries(std::string_view at, LogStream stream, std::string_view written);

/// The entry of one line, without its newline; nothing where it is none.
std::optional<LogEntry> parse_log_line(std::string_view line);

}  // namespace berth::container
