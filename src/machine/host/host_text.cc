#include "machine/host/host_text.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include <fmt/format.h>

namespace berth::machine {
namespace {

constexpr std::string_view blanks = " \t\r\n";
constexpr std::uint64_t kilobytes_max = std::numeric_limits<std::uint64_t>::max() / 1024;

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(blanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// What stands behind "name" and a colon, if the line has it.
std::optional<std::string_view> value_of(std::string_view line, std::string_view name) {
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || trimmed(line.substr(0, colon)) != name)
    return std::nullopt;
  return trimmed(line.substr(colon + 1));
}

std::optional<std::uint64_t> kilobytes(std::string_view text) {
  const auto number = leading_number(text);
  if (!number || *number > kilobytes_max) return std::nullopt;
  return *number * 1024;
}

/// One number of a version, and past it.
std::optional<unsigned> take_number(std::string_view& text) {
  unsigned number = 0;
  const auto [stop, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(stop - text.data()));
  return number;
}

std::optional<Version> version_at(std::string_view text) {
  Version version;
  const auto major = take_number(text);
  if (!major || text.size() < 2 || text[0] != '.' || !is_digit(text[1])) return std::nullopt;
  text.remove_prefix(1);
  const auto minor = take_number(text);
  if (!minor) return std::nullopt;
  version.major = *major;
  version.minor = *minor;
  if (text.size() >= 2 && text[0] == '.' && is_digit(text[1])) {
    text.remove_prefix(1);
    version.patch = take_number(text).value_or(0);
  }
  return version;
}

}  // namespace

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t begin = text.find_first_not_of(separators);
    if (begin == std::string_view::npos) return parts;
    const std::size_t end = std::min(text.find_first_of(separators, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    text.remove_prefix(end);
  }
}

std::optional<std::uint64_t> leading_number(std::string_view text) {
  text = trimmed(text);
  std::uint64_t number = 0;
  const auto [stop, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc{}) return std::nullopt;
  return number;
}

CpuInfo parse_cpuinfo(std::string_view text) {
  CpuInfo info;
  for (const std::string_view line : split(text, "\n")) {
    if (value_of(line, "processor")) ++info.processors;
    if (const auto model = value_of(line, "model name"); model && info.model.empty())
      info.model = *model;
    const auto flags = value_of(line, "flags");
    if (!flags || info.has_flags) continue;
    info.has_flags = true;
    for (const std::string_view flag : split(*flags, blanks)) {
      info.vmx = info.vmx || flag == "vmx";
      info.svm = info.svm || flag == "svm";
      info.hypervisor = info.hypervisor || flag == "hypervisor";
    }
  }
  return info;
}

std::optional<std::uint64_t> meminfo_bytes(std::string_view text, std::string_view field) {
  for (const std::string_view line : split(text, "\n")) {
    if (const auto value = value_of(line, field)) return kilobytes(*value);
  }
  return std::nullopt;
}

std::optional<std::uint64_t> smaps_bytes(std::string_view text, std::uint64_t address,
                                         std::string_view field) {
  const std::string begin = fmt::format("{:08x}-", address);
  bool inside = false;
  for (const std::string_view line : split(text, "\n")) {
    // A mapping's first line begins with its addresses in lower case; its fields do not.
    const bool heading = is_digit(line[0]) || (line[0] >= 'a' && line[0] <= 'f');
    if (heading) inside = line.starts_with(begin);
    if (!inside) continue;
    if (const auto value = value_of(line, field)) return kilobytes(*value);
  }
  return std::nullopt;
}

std::vector<SwapArea> parse_swaps(std::string_view text) {
  std::vector<SwapArea> areas;
  for (const std::string_view line : split(text, "\n")) {
    const auto words = split(line, blanks);
    if (words.size() < 4 || !words[0].starts_with('/')) continue;
    areas.push_back({.name = std::string(words[0]),
                     .type = std::string(words[1]),
                     .size_bytes = kilobytes(words[2]).value_or(0),
                     .used_bytes = kilobytes(words[3]).value_or(0)});
  }
  return areas;
}

std::string chosen_word(std::string_view text) {
  const std::size_t open = text.find('[');
  if (open == std::string_view::npos) return std::string(trimmed(text));
  const std::size_t close = text.find(']', open);
  if (close == std::string_view::npos) return std::string(trimmed(text));
  return std::string(text.substr(open + 1, close - open - 1));
}

std::string to_string(const Version& version) {
  return fmt::format("{}.{}.{}", version.major, version.minor, version.patch);
}

std::optional<Version> find_version(std::string_view text) {
  for (std::size_t at = 0; at < text.size(); ++at) {
    const bool begins = is_digit(text[at]) && (at == 0 || !is_digit(text[at - 1]));
    if (!begins) continue;
    if (const auto version = version_at(text.substr(at))) return version;
  }
  return std::nullopt;
}

std::vector<std::string> parse_accelerators(std::string_view text) {
  std::vector<std::string> names;
  for (const std::string_view line : split(text, "\n")) {
    const std::string_view name = trimmed(line);
    // The heading is a sentence; a name is one word, maybe with what it is behind it.
    if (!name.empty() && !name.contains(':') && !name.contains(' ')) names.emplace_back(name);
  }
  return names;
}

}  // namespace berth::machine
