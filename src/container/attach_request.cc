#include "container/attach_request.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "container/container_record.h"
#include "machine/control_messages.h"

namespace berth::container {
namespace {

using machine::Json;

std::unexpected<Error> wrong(const char* member, const char* expected) {
  return failure(ErrorKind::invalid_argument, fmt::format("{}: expected {}", member, expected));
}

Result<std::vector<std::string>> texts_of(const Json& json, const char* member, std::size_t most) {
  std::vector<std::string> texts;
  const auto found = json.find(member);
  if (found == json.end() || found->is_null()) return texts;
  if (!found->is_array() || found->size() > most) return wrong(member, "a list of texts");
  for (const Json& entry : *found) {
    if (!entry.is_string() || entry.get_ref<const std::string&>().contains('\0'))
      return wrong(member, "a list of texts");
    texts.push_back(entry.get<std::string>());
  }
  return texts;
}

Result<std::uint16_t> size_of(const Json& json, const char* member) {
  const std::uint64_t size = TRY(machine::number_param(json, member)).value_or(0);
  if (size > std::numeric_limits<std::uint16_t>::max())
    return wrong(member, "a number up to 65535");
  return static_cast<std::uint16_t>(size);
}

Result<ProcessSpecification> decode_process(const Json& json) {
  ProcessSpecification process{
      .arguments = TRY(texts_of(json, "arguments", container_arguments_max)),
      .environment = TRY(texts_of(json, "environment", container_environment_max)),
      .working_directory = TRY(machine::text_param(json, "working_directory")),
      .user = TRY(machine::text_param(json, "user")),
      .terminal = TRY(machine::flag_param(json, "terminal")),
      .input = TRY(machine::flag_param(json, "input"))};
  if (process.arguments.empty() || process.arguments.front().empty())
    return wrong("arguments", "a command");
  std::size_t bytes = 0;
  for (const std::string& word : process.arguments) bytes += word.size() + 1;
  for (const std::string& variable : process.environment) bytes += variable.size() + 1;
  if (bytes > container_words_bytes_max) return wrong("arguments", "a shorter command");
  const std::uint16_t rows = TRY(size_of(json, "rows"));
  const std::uint16_t columns = TRY(size_of(json, "columns"));
  if (rows > 0 && columns > 0) {
    process.rows = rows;
    process.columns = columns;
  }
  return process;
}

}  // namespace

Result<AttachRequest> decode_attach_request(std::string_view line) {
  const auto json = machine::parse_json(line);
  if (!json) return failure(ErrorKind::invalid_argument, json.error().message());
  if (!json->is_object() || json->size() != 1 || !json->begin()->is_object())
    return failure(ErrorKind::invalid_argument, "expected one request");
  const Json& request = *json->begin();
  AttachRequest decoded;
  if (json->begin().key() == "exec") {
    decoded.kind = AttachRequest::Kind::exec;
    decoded.process = TRY(decode_process(request));
    return decoded;
  }
  if (json->begin().key() == "copy_out" || json->begin().key() == "copy_in") {
    decoded.kind = json->begin().key() == "copy_out" ? AttachRequest::Kind::copy_out
                                                     : AttachRequest::Kind::copy_in;
    decoded.path = TRY(machine::text_param(request, "path"));
    decoded.keep_owners = TRY(machine::flag_param(request, "keep_owners"));
    if (!decoded.path.starts_with('/')) return wrong("path", "an absolute path");
    return decoded;
  }
  if (json->begin().key() != "attach") {
    return failure(ErrorKind::unsupported,
                   fmt::format("'{}' is no request of this keeper", json->begin().key()));
  }
  decoded.input = TRY(machine::flag_param(request, "input"));
  decoded.rows = TRY(size_of(request, "rows"));
  decoded.columns = TRY(size_of(request, "columns"));
  const std::string from = TRY(machine::text_param(request, "from"));
  if (from != "start" && from != "now") return wrong("from", "start or now");
  decoded.from_start = from == "start";
  return decoded;
}

}  // namespace berth::container
