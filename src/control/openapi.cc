#include "control/openapi.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/actions.h"
#include "control/schema.h"
#include "disk/types.h"
#include "machine/layout.h"

namespace berth::control {
namespace {

using Json = nlohmann::ordered_json;
using Place = Parameter::Place;
using Type = Parameter::Type;

Json reference(std::string_view schema) {
  return {{"$ref", fmt::format("#/components/schemas/{}", schema)}};
}

/// A field's type as a JSON Schema.
Json schema_of_type(std::string_view type) {
  const TypeParts parts = parse_type(type);
  Json schema;
  if (parts.base == "time") {
    schema = {{"type", "string"}, {"format", "date-time"}};
  } else if (parts.base == "id") {
    schema = {{"type", "string"}, {"format", "uuid"}};
  } else if (find_schema(parts.base) != nullptr) {
    schema = reference(parts.base);
  } else {
    schema = {{"type", parts.base}};
  }
  for (int i = 0; i < parts.list_depth; ++i) schema = {{"type", "array"}, {"items", schema}};
  if (!parts.nullable) return schema;
  if (schema.contains("type")) {
    schema["type"] = Json::array({schema["type"], "null"});
    return schema;
  }
  return {{"oneOf", Json::array({schema, Json{{"type", "null"}}})}};
}

Json schema_of(const Schema& schema) {
  Json properties = Json::object();
  Json required = Json::array();
  for (const Field& field : schema.fields) {
    Json property = schema_of_type(field.type);
    property["description"] = field.description;
    properties[std::string(field.name)] = std::move(property);
    if (!field.optional) required.push_back(field.name);
  }
  Json object = {{"type", "object"}, {"description", schema.description}};
  if (!properties.empty()) object["properties"] = std::move(properties);
  if (!required.empty()) object["required"] = std::move(required);
  return object;
}

Json schema_of_parameter(const Parameter& parameter) {
  const auto name = [](std::size_t length_max) {
    return Json{{"type", "string"},
                {"pattern", fmt::format("^[A-Za-z0-9][A-Za-z0-9._-]{{0,{}}}$", length_max - 1)}};
  };
  switch (parameter.type) {
    case Type::volume_name:
    case Type::machine_name: return name(machine::volume_name_length_max);
    case Type::point_name: return name(disk::name_length_max);
    case Type::volume_names:
      return {{"type", "array"},
              {"items", name(machine::volume_name_length_max)},
              {"minItems", 1},
              {"uniqueItems", true}};
    case Type::texts: return {{"type", "array"}, {"items", {{"type", "string"}}}};
    case Type::size:
    case Type::count: return {{"type", "integer"}, {"minimum", 0}};
    case Type::object: return {{"type", "object"}};
    case Type::flag: return {{"type", "boolean"}, {"default", false}};
    case Type::choice: return {{"type", "string"}, {"enum", parameter.choices}};
    case Type::id: return {{"type", "string"}, {"format", "uuid"}};
    case Type::path: return {{"type", "string"}, {"pattern", "^/"}};
    case Type::text:
    case Type::address: return {{"type", "string"}};
  }
  return Json::object();
}

Json parameters_of(const Action& action) {
  Json list = Json::array();
  for (const Parameter& parameter : action.parameters) {
    if (parameter.place == Place::body) continue;
    list.push_back({{"name", parameter.name},
                    {"in", parameter.place == Place::path ? "path" : "query"},
                    {"required", parameter.required},
                    {"description", parameter.description},
                    {"schema", schema_of_parameter(parameter)}});
  }
  return list;
}

/// The request's body, or null if the action takes none.
Json body_of(const Action& action) {
  Json properties = Json::object();
  Json required = Json::array();
  for (const Parameter& parameter : action.parameters) {
    if (parameter.place != Place::body) continue;
    Json property = schema_of_parameter(parameter);
    property["description"] = parameter.description;
    properties[std::string(parameter.name)] = std::move(property);
    if (parameter.required) required.push_back(parameter.name);
  }
  if (properties.empty()) return nullptr;
  Json schema = {{"type", "object"}, {"properties", std::move(properties)}};
  const bool is_required = !required.empty();
  if (is_required) schema["required"] = std::move(required);
  schema["additionalProperties"] = false;
  return {{"required", is_required},
          {"content", {{"application/json", {{"schema", std::move(schema)}}}}}};
}

Json success_of(const Action& action) {
  switch (action.answer) {
    case Answer::stream:
      return {{"description", "Objects of this schema, one a line, for as long as it goes on"},
              {"content", {{"application/x-ndjson", {{"schema", reference(action.result)}}}}}};
    case Answer::upgrade:
      return {{"description",
               "The connection is the container's from now on: a line of JSON that asks, one that "
               "answers, and frames, both ways (docs/formats/containers.md, Attach)"}};
    case Answer::job:
      return {
          {"description", fmt::format("The job that does it; its result is: {}", action.result)},
          {"content", {{"application/json", {{"schema", reference("Job")}}}}}};
    case Answer::result:
    case Answer::created:
      return {{"description", find_schema(action.result)->description},
              {"content", {{"application/json", {{"schema", reference(action.result)}}}}}};
  }
  return nullptr;
}

Json responses_of(const Action& action) {
  std::map<unsigned, std::vector<std::string_view>> kinds_by_status;
  for (const ErrorKind kind : errors_of(action))
    kinds_by_status[http_status(kind)].push_back(to_string(kind));

  Json responses = {{fmt::format("{}", success_status(action)), success_of(action)}};
  for (const auto& [status, kinds] : kinds_by_status) {
    responses[fmt::format("{}", status)] = {
        {"description", fmt::format("{}", fmt::join(kinds, ", "))},
        {"content", {{"application/json", {{"schema", reference("Error")}}}}}};
  }
  return responses;
}

Json operation_of(const Action& action) {
  const std::string_view noun = action.name.substr(0, action.name.find('.'));
  Json operation = {
      {"operationId", action.name}, {"tags", Json::array({noun})}, {"summary", action.summary}};
  if (!action.precondition.empty()) {
    operation["description"] = fmt::format("Precondition: {}.", action.precondition);
  }
  if (Json parameters = parameters_of(action); !parameters.empty())
    operation["parameters"] = std::move(parameters);
  if (Json body = body_of(action); !body.is_null()) operation["requestBody"] = std::move(body);
  operation["responses"] = responses_of(action);
  return operation;
}

std::string method_key(Method method) {
  switch (method) {
    case Method::get: return "get";
    case Method::post: return "post";
    case Method::remove: return "delete";
  }
  return {};
}

bool is_plain_key(std::string_view key) {
  return !key.empty() && std::ranges::all_of(key, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  });
}

std::string yaml_scalar(const Json& value) {
  if (value.is_object()) return "{}";
  if (value.is_array()) return "[]";
  return value.dump();
}

bool is_block(const Json& value) { return value.is_structured() && !value.empty(); }

void write_yaml(const Json& value, std::size_t indent, std::string& out);

void write_member(const std::string& lead, const Json& value, std::size_t indent,
                  std::string& out) {
  out += lead;
  if (is_block(value)) {
    out += '\n';
    write_yaml(value, indent + 2, out);
  } else {
    out += ' ' + yaml_scalar(value) + '\n';
  }
}

void write_yaml(const Json& value, std::size_t indent, std::string& out) {
  const std::string margin(indent, ' ');
  if (value.is_array()) {
    for (const Json& entry : value) {
      if (!is_block(entry)) {
        out += margin + "- " + yaml_scalar(entry) + '\n';
        continue;
      }
      // The first line of a nested block stands behind the dash.
      std::string nested;
      write_yaml(entry, indent + 2, nested);
      nested[indent] = '-';
      out += nested;
    }
    return;
  }
  for (const auto& [key, member] : value.items()) {
    write_member(margin + (is_plain_key(key) ? key : Json(key).dump()) + ':', member, indent, out);
  }
}

constexpr std::string_view description =
    "The interface of `berth daemon`, on the UNIX socket api.sock of its run directory, for root "
    "and the group berth. "
    "Over TCP it is off by default and needs a client certificate. Sizes and offsets are bytes, "
    "times RFC 3339 in UTC. "
    "Long work answers 202 with a Job: follow it at /v1/jobs/{job}/watch. Unknown parameters are "
    "refused, and objects "
    "may get more members in later versions. A path with another method answers 405.";

}  // namespace

Json openapi_document() {
  Json paths = Json::object();
  for (const Action& action : actions()) {
    paths[std::string(action.path)][method_key(action.method)] = operation_of(action);
  }
  Json components = Json::object();
  for (const Schema& schema : schemas()) components[std::string(schema.name)] = schema_of(schema);
  return {{"openapi", "3.1.0"},
          {"info",
           {{"title", "Berth"},
            {"version", "1"},
            {"description", description},
            {"license", {{"name", "Apache 2.0"}, {"identifier", "Apache-2.0"}}}}},
          {"paths", std::move(paths)},
          {"components", {{"schemas", std::move(components)}}}};
}

std::string to_yaml(const Json& value) {
  std::string out;
  write_yaml(value, 0, out);
  return out;
}

std::string openapi_yaml() {
  return "# Made by `berth internal openapi` from src/control/actions.cc and schema.cc; a test "
         "checks that it is current.\n" +
         to_yaml(openapi_document());
}

Json action_table() {
  Json table = Json::array();
  for (const Action& action : actions()) {
    Json parameters = Json::array();
    for (const Parameter& parameter : action.parameters) {
      constexpr std::string_view places[] = {"path", "query", "body"};
      parameters.push_back({{"name", parameter.name},
                            {"in", places[static_cast<std::size_t>(parameter.place)]},
                            {"required", parameter.required}});
    }
    Json errors = Json::array();
    for (const ErrorKind kind : errors_of(action)) {
      errors.push_back({{"kind", to_string(kind)}, {"status", http_status(kind)}});
    }
    constexpr std::string_view answers[] = {"result", "created", "job", "stream", "upgrade"};
    table.push_back({{"name", action.name},
                     {"method", to_string(action.method)},
                     {"path", action.path},
                     {"precondition", action.precondition},
                     {"answer", answers[static_cast<std::size_t>(action.answer)]},
                     {"status", success_status(action)},
                     {"result", action.result},
                     {"parameters", std::move(parameters)},
                     {"errors", std::move(errors)}});
  }
  return table;
}

}  // namespace berth::control
