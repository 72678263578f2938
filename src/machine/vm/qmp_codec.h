// The lines of QMP: text to structures and back.
//
// Pure: no I/O, no state. A line that is no QMP is an Error of kind `protocol`. Commands are sent
// with an id, which answers repeat.
// Source: QEMU, docs/interop/qmp-spec.rst.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "machine/control_protocol.h"

namespace berth::machine {

/// Nested arrays and objects: chains of block nodes are as deep as they are long.
constexpr std::size_t qmp_depth_max = 128;

/// What QEMU says.
struct QmpMessage {
  enum class Kind : std::uint8_t { greeting, result, error, event };
  Kind kind = Kind::result;
  /// Of the command. An error may have none: QEMU did not understand what it was sent.
  std::optional<std::uint64_t> id;
  Json value;               // greeting: `QMP`; result: `return`; event: `data`, an object
  std::string event;        // of an event: its name
  std::string error_class;  // of an error: "GenericError", …
  std::string description;  // of an error: for a person
};

Result<QmpMessage> parse_qmp(std::string_view line);

/// Ends with the newline. `arguments` is an object, or null for none.
std::string format_qmp_command(std::uint64_t id, std::string_view command, const Json& arguments);

/// An answer that is an error: not_found for DeviceNotFound, unsupported for CommandNotFound, else
/// precondition.
Error qmp_error(std::string_view command, const QmpMessage& answer);

}  // namespace berth::machine
