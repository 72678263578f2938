#include "machine/control_protocol.h"

#include <limits>
#include <utility>

#include <fmt/format.h>

namespace berth::machine {
namespace {

constexpr std::size_t method_length_max = 64;        // bytes
constexpr std::size_t error_message_max = 8 * 1024;  // bytes of a message that goes out

std::unexpected<Error> refuse(std::string context) {
  return failure(ErrorKind::protocol, std::move(context));
}

/// A member of an object, or null.
const Json& member(const Json& object, const char* name) {
  static const Json absent;
  const auto found = object.find(name);
  return found == object.end() ? absent : *found;
}

std::optional<std::uint64_t> whole_number(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return std::nullopt;
  }
  return number;
}

std::string text_or_empty(const Json& value) {
  return value.is_string() ? value.get<std::string>() : std::string();
}

std::string as_line(const Json& value) { return format_json(value) + '\n'; }

Json encode_error(const Error& error) {
  return {{"kind", to_string(error.kind())},
          {"message", error.message().substr(0, error_message_max)}};
}

Result<Json> parse_object(std::string_view line) {
  if (line.size() > control_line_max) {
    return refuse(fmt::format("a line has more than {} bytes", control_line_max));
  }
  Json value = TRY(parse_json(line));
  if (!value.is_object()) return refuse("a line is not a JSON object");
  return value;
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::size_t depth_max) {
  bool too_deep = false;
  const auto bound_depth = [&too_deep, depth_max](int depth, Json::parse_event_t event,
                                                  Json& /*parsed*/) {
    const bool opens =
        event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= static_cast<int>(depth_max)) too_deep = true;
    return !too_deep;
  };
  try {
    Json value = Json::parse(text, bound_depth);
    if (too_deep) return refuse(fmt::format("JSON is nested deeper than {}", depth_max));
    return value;
  } catch (const Json::exception& error) {
    return refuse(fmt::format("not JSON: {}", error.what()));
  }
}

std::string format_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<ControlRequest> parse_request(std::string_view line) {
  Json value = TRY(parse_object(line));
  const auto id = whole_number(member(value, "id"));
  if (!id) return refuse("a request has no 'id', a whole number");
  const Json& method = member(value, "method");
  if (!method.is_string()) return refuse("a request has no 'method', a text");

  ControlRequest request{.id = *id, .method = method.get<std::string>(), .params = Json::object()};
  if (request.method.empty() || request.method.size() > method_length_max) {
    return refuse(fmt::format("a request's 'method' has 1 to {} bytes", method_length_max));
  }
  if (const auto params = value.find("params"); params != value.end() && !params->is_null()) {
    if (!params->is_object()) return refuse("a request's 'params' is not an object");
    request.params = std::move(*params);
  }
  return request;
}

Result<ControlReply> parse_reply(std::string_view line) {
  Json value = TRY(parse_object(line));
  ControlReply reply;
  reply.id = whole_number(member(value, "id"));

  if (const Json& event = member(value, "event"); event.is_string()) {
    reply.kind = ControlReply::Kind::event;
    reply.event = event.get<std::string>();
    reply.message = text_or_empty(member(value, "message"));
    return reply;
  }
  if (const Json& error = member(value, "error"); error.is_object()) {
    reply.kind = ControlReply::Kind::error;
    reply.error.emplace(error_kind_from_string(text_or_empty(member(error, "kind"))),
                        text_or_empty(member(error, "message")));
    return reply;
  }
  if (!reply.id) return refuse("a reply has no 'id'");
  if (const Json& progress = member(value, "progress"); progress.is_object()) {
    reply.kind = ControlReply::Kind::progress;
    reply.progress.phase = text_or_empty(member(progress, "phase"));
    reply.progress.done = whole_number(member(progress, "done")).value_or(0);
    reply.progress.total = whole_number(member(progress, "total")).value_or(0);
    return reply;
  }
  const auto result = value.find("result");
  if (result == value.end()) return refuse("a reply has neither result, error nor progress");
  reply.result = std::move(*result);
  return reply;
}

std::string format_request(std::uint64_t id, std::string_view method, Json params) {
  return as_line({{"id", id}, {"method", method}, {"params", std::move(params)}});
}

std::string format_result(std::uint64_t id, Json result) {
  std::string line = as_line({{"id", id}, {"result", std::move(result)}});
  if (line.size() <= control_line_max + 1) return line;
  return format_error(
      id, Error(ErrorKind::limit,
                fmt::format("the answer has {} bytes, a line at most {}: ask for less", line.size(),
                            control_line_max)));
}

std::string format_error(std::optional<std::uint64_t> id, const Error& error) {
  return as_line({{"id", id ? Json(*id) : Json()}, {"error", encode_error(error)}});
}

std::string format_progress(std::uint64_t id, const ControlProgress& progress) {
  return as_line(
      {{"id", id},
       {"progress",
        {{"phase", progress.phase}, {"done", progress.done}, {"total", progress.total}}}});
}

std::string format_event(std::string_view event, std::string_view message) {
  return as_line({{"event", event}, {"message", message.substr(0, error_message_max)}});
}

}  // namespace berth::machine
