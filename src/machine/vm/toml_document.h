// Text in TOML as the generic form that readers of it work on, with the line of everything. Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::machine {

struct TomlDocument {
  Json value;                                          // an object
  std::map<std::string, unsigned, std::less<>> lines;  // by JSON pointer ("/disk/1/size")
};

/// `invalid_argument` with `file` and the line, for what is no TOML, or more than
/// machine_toml_bytes_max. A date or a time becomes a discarded value.
Result<TomlDocument> parse_toml(std::string_view text, std::string_view file);

/// Of the place itself, or of the nearest table around it that the file has.
unsigned line_of(const TomlDocument& document, std::string_view place);

}  // namespace berth::machine
