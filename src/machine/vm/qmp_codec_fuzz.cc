// Lines of QMP, from any bytes in pieces of any size: lines come out as they went in, and what is
// taken for a message is one.
//
// Input: a byte with the size of the pieces, a byte with the longest line, then what QEMU says.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "machine/vm/peer_lines.h"
#include "machine/vm/qmp_codec.h"

namespace berth::machine {
namespace {

/// The whole lines of the text, up to one that is too long or not whole.
std::vector<std::string> split(std::string_view text, std::size_t line_max) {
  std::vector<std::string> lines;
  while (true) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos || end > line_max) return lines;
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
}

bool is_printable(const std::string& text) {
  return std::ranges::none_of(text, [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; });
}

void check_message(const std::string& line) {
  const auto message = parse_qmp(line);
  if (!message) {
    CHECK(message.error().kind() == ErrorKind::protocol);
    CHECK(is_printable(message.error().message()) && message.error().message().size() < 2048);
    return;
  }
  switch (message->kind) {
    case QmpMessage::Kind::greeting:
    case QmpMessage::Kind::event: CHECK(message->value.is_object()); break;
    case QmpMessage::Kind::result: CHECK(message->id.has_value()); break;
    case QmpMessage::Kind::error: {
      const Error error = qmp_error("command", *message);
      CHECK(is_printable(error.message()));
      break;
    }
  }
  // What has been taken in can be shown again, on one line.
  CHECK(format_json(message->value).find('\n') == std::string::npos);
}

void run(std::size_t piece, std::size_t line_max, Bytes input) {
  const auto expected = split(as_text(input), line_max);
  std::vector<std::string> lines;
  LineBuffer buffer(line_max);
  bool goes_on = true;
  while (goes_on && !input.empty()) {
    const Bytes part = input.first(std::min(piece, input.size()));
    input = input.subspan(part.size());
    buffer.append(part);
    while (true) {
      const auto line = buffer.next();
      goes_on = line.has_value();
      if (!line || !*line) break;
      lines.emplace_back(**line);
    }
  }
  CHECK(lines == expected);
  for (const std::string& line : lines) check_message(line);
}

}  // namespace
}  // namespace berth::machine

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const berth::Bytes input(reinterpret_cast<const std::byte*>(data), size);
  berth::machine::run(std::size_t{1} + data[0], std::size_t{8} * data[1], input.subspan(2));
  return 0;
}
