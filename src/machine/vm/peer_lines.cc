#include "machine/vm/peer_lines.h"

#include <algorithm>

#include <fmt/format.h>

namespace berth::machine {

void LineBuffer::append(Bytes bytes) {
  bytes_.erase(0, start_);
  searched_ -= start_;
  start_ = 0;
  bytes_ += as_text(bytes);
}

Result<std::optional<std::string_view>> LineBuffer::next() {
  const std::size_t end = bytes_.find('\n', searched_);
  searched_ = end == std::string::npos ? bytes_.size() : end + 1;
  const std::size_t length = (end == std::string::npos ? bytes_.size() : end) - start_;
  if (length > line_max_) {
    return failure(ErrorKind::limit, fmt::format("a line has more than {} bytes", line_max_));
  }
  if (end == std::string::npos) return std::nullopt;
  const std::string_view line = std::string_view(bytes_).substr(start_, length);
  start_ = end + 1;
  return line;
}

namespace {

/// Bytes of the UTF-8 sequence at the beginning of `text`; 0 if there is none (Unicode, table 3-7).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&text](std::size_t at) {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0U;
  };
  const auto continues = [&byte](std::size_t at) { return (byte(at) & 0xC0U) == 0x80U; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return continues(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const bool overlong = first == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = first == 0xED && byte(1) >= 0xA0;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool overlong = first == 0xF0 && byte(1) < 0x90;
    const bool too_large = first == 0xF4 && byte(1) >= 0x90;
    return continues(1) && continues(2) && continues(3) && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

bool is_control(std::string_view character) {
  const auto first = static_cast<unsigned char>(character.front());
  if (character.size() == 1) return first < 0x20 || first == 0x7F;
  // C1, which some terminals obey: U+0080 to U+009F.
  if (character.size() == 2)
    return first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
  // What turns the direction of a line, or ends it: U+2028 to U+202E, U+2066 to U+2069.
  const auto within = [&character](std::string_view from, std::string_view to) {
    return character >= from && character <= to;
  };
  return within("\u2028", "\u202E") || within("\u2066", "\u2069");
}

}  // namespace

std::string printable(std::string_view text, std::size_t length_max) {
  std::string shown;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const std::string_view character = text.substr(0, std::max<std::size_t>(length, 1));
    if (shown.size() + character.size() > length_max) return shown + "…";
    if (length == 0) {
      shown += '?';
    } else if (is_control(character)) {
      shown += ' ';
    } else {
      shown += character;
    }
    text.remove_prefix(character.size());
  }
  return shown;
}

}  // namespace berth::machine
