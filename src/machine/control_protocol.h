// The lines of the control socket (docs/formats/keeper-control.md): text to structures and back.
//
// Pure: no I/O, no state. A line from outside may hold anything: what is wrong with it is said in
// an Error of kind `protocol`. No exception of the JSON library leaves here. What is inside the
// parameters and the results is the matter of control_messages.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "base/result.h"

namespace berth::machine {

using Json = nlohmann::json;

constexpr int control_protocol_version = 1;
constexpr std::size_t control_line_max = 1 << 20;  // bytes, without the newline
constexpr std::size_t control_depth_max = 16;      // nested arrays and objects

/// What a client asks for.
struct ControlRequest {
  std::uint64_t id = 0;  // at most INT64_MAX
  std::string method;
  Json params;  // an object
};

/// The phase of a cut whose instant is over, though its record is not durable yet.
inline constexpr std::string_view phase_writes_go_on = "writes go on";

/// How far a long request has come.
struct ControlProgress {
  std::string phase;
  std::uint64_t done = 0;   // bytes
  std::uint64_t total = 0;  // bytes, 0 where it is not known
};

/// What a keeper says.
struct ControlReply {
  enum class Kind : std::uint8_t { result, error, progress, event };
  Kind kind = Kind::result;
  std::optional<std::uint64_t> id;  // of the request; an error without one is the connection's
  Json result;                      // of a result
  std::optional<Error> error;       // of an error
  ControlProgress progress;         // of a progress
  std::string event;                // of an event: its name
  std::string message;              // of an event, for a person
};

/// A JSON text of bounded depth, as in a line or in one of the keeper's files: `protocol` if it is
/// none.
Result<Json> parse_json(std::string_view text, std::size_t depth_max = control_depth_max);
/// On one line. Bytes that are not UTF-8 are replaced.
std::string format_json(const Json& value);

Result<ControlRequest> parse_request(std::string_view line);
Result<ControlReply> parse_reply(std::string_view line);

// These end with the newline.
std::string format_request(std::uint64_t id, std::string_view method, Json params);
/// An error of kind `limit` in place of a result that does not fit into a line.
std::string format_result(std::uint64_t id, Json result);
/// Without an id for a line that was no request.
std::string format_error(std::optional<std::uint64_t> id, const Error& error);
std::string format_progress(std::uint64_t id, const ControlProgress& progress);
std::string format_event(std::string_view event, std::string_view message);

}  // namespace berth::machine
