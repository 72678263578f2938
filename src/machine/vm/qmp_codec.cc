#include "machine/vm/qmp_codec.h"

#include <utility>

#include <fmt/format.h>

#include "machine/vm/peer_lines.h"

namespace berth::machine {
namespace {

constexpr std::size_t shown_max = 200;  // bytes of a line that is no QMP

std::unexpected<Error> refuse(std::string_view why, std::string_view line) {
  return failure(ErrorKind::protocol,
                 fmt::format("QEMU says what is no QMP ({}): {}", printable(why, shown_max),
                             printable(line, shown_max)));
}

bool is_text(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string();
}

/// Leaves the object without it.
Json take(Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? Json() : std::move(*found);
}

}  // namespace

Result<QmpMessage> parse_qmp(std::string_view line) {
  auto parsed = parse_json(line, qmp_depth_max);
  if (!parsed) return refuse(parsed.error().message(), line);
  Json& object = *parsed;
  if (!object.is_object()) return refuse("not an object", line);

  QmpMessage message;
  if (const auto id = object.find("id"); id != object.end()) {
    if (!id->is_number_unsigned()) return refuse("an id that no command had", line);
    message.id = id->get<std::uint64_t>();
  }
  if (object.contains("QMP")) {
    message.kind = QmpMessage::Kind::greeting;
    message.value = take(object, "QMP");
    if (!message.value.is_object()) return refuse("a greeting is an object", line);
    return message;
  }
  if (object.contains("event")) {
    message.kind = QmpMessage::Kind::event;
    if (!is_text(object, "event")) return refuse("an event's name is a text", line);
    message.event = object["event"].get<std::string>();
    message.value = take(object, "data");
    if (message.value.is_null()) message.value = Json::object();
    if (!message.value.is_object()) return refuse("an event's data is an object", line);
    return message;
  }
  if (object.contains("error")) {
    message.kind = QmpMessage::Kind::error;
    const Json error = take(object, "error");
    if (!error.is_object() || !is_text(error, "class") || !is_text(error, "desc"))
      return refuse("an error has a class and a description", line);
    message.error_class = printable(error["class"].get_ref<const std::string&>());
    message.description = printable(error["desc"].get_ref<const std::string&>());
    return message;
  }
  if (!object.contains("return")) return refuse("neither answer nor event", line);
  if (!message.id) return refuse("an answer has an id", line);
  message.value = take(object, "return");
  return message;
}

std::string format_qmp_command(std::uint64_t id, std::string_view command, const Json& arguments) {
  Json object{{"execute", command}, {"id", id}};
  if (!arguments.is_null()) object["arguments"] = arguments;
  return format_json(object) + '\n';
}

Error qmp_error(std::string_view command, const QmpMessage& answer) {
  ErrorKind kind = ErrorKind::precondition;
  if (answer.error_class == "DeviceNotFound") kind = ErrorKind::not_found;
  if (answer.error_class == "CommandNotFound") kind = ErrorKind::unsupported;
  return {kind, fmt::format("QEMU refuses {}: {}", command, answer.description)};
}

}  // namespace berth::machine
