// Lines from a peer that may say anything (QEMU, a guest): taken off its bytes, and shown to
// people.
//
// Pure; no I/O.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace berth::machine {

/// Takes bytes as they come and gives whole lines. Keeps no more than one line and one read.
class LineBuffer {
 public:
  /// `line_max`: bytes of a line, without its newline.
  explicit LineBuffer(std::size_t line_max) : line_max_(line_max) {}

  void append(Bytes bytes);
  /// The next line, without its newline; nothing if it has not come whole. `limit` if it is too
  /// long: there is no going on then. Valid until the next call of append().
  Result<std::optional<std::string_view>> next();

 private:
  std::size_t line_max_;
  std::string bytes_;
  std::size_t start_ = 0;     // of the next line
  std::size_t searched_ = 0;  // no newline between start_ and here
};

/// A peer's words for a message, log or terminal: of bounded length, on one line, no control
/// characters, UTF-8.
std::string printable(std::string_view text, std::size_t length_max = 1024);

}  // namespace berth::machine
