#include "control/keeper_lists.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "control/schema.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

constexpr int pages_max = 10'000;

bool has_type(const Json& value, std::string_view type) {
  const TypeParts parts = parse_type(type);
  if (value.is_null()) return parts.nullable;
  if (parts.list_depth > 0) return value.is_array();
  if (parts.base == "integer") return value.is_number_integer();
  if (parts.base == "number") return value.is_number();
  if (parts.base == "boolean") return value.is_boolean();
  if (parts.base == "string" || parts.base == "time" || parts.base == "id")
    return value.is_string();
  return value.is_object();
}

/// A keeper says the nil id where there is no group.
Json group_or_null(const Json& source) {
  const auto group = source.find("group");
  if (group == source.end() || !group->is_string()) return nullptr;
  const auto id = Id128::parse(group->get_ref<const std::string&>());
  return !id || id->is_nil() ? Json() : *group;
}

}  // namespace

Result<Json> pick(std::string_view schema_name, const Json& source) {
  const Schema* schema = find_schema(schema_name);
  CHECK(schema != nullptr);
  Json picked = Json::object();
  for (const Field& field : schema->fields) {
    const auto found = source.find(field.name);
    if (found == source.end() || !has_type(*found, field.type)) {
      return failure(
          ErrorKind::protocol,
          fmt::format("the keeper's answer has no '{}' that fits a {}", field.name, schema_name));
    }
    picked[std::string(field.name)] = *found;
  }
  return picked;
}

Async<Result<Json>> list_all(KeeperChannel& channel, std::string method, std::string member) {
  Json all = Json::array();
  Json params = Json::object();
  for (int page = 0; page < pages_max; ++page) {
    Json answer = CO_TRY(co_await channel.call(method, params, {}));
    const auto entries = answer.find(member);
    if (entries == answer.end() || !entries->is_array()) {
      co_return failure(ErrorKind::protocol,
                        fmt::format("the keeper's answer to {} has no '{}'", method, member));
    }
    for (Json& entry : *entries) all.push_back(std::move(entry));
    const auto next = answer.find("next_offset");
    if (answer.find("complete") == answer.end() || answer["complete"] != false ||
        next == answer.end())
      co_return all;
    params["offset"] = *next;
  }
  co_return failure(ErrorKind::limit, fmt::format("{} has no end", method));
}

Result<Json> shown_checkpoint(const std::string& volume, const Json& checkpoint) {
  if (checkpoint.is_null()) return Json();
  if (!checkpoint.is_object())
    return failure(ErrorKind::protocol, "the keeper's checkpoint is not an object");
  Json shown = checkpoint;
  shown["volume"] = volume;
  shown["group"] = group_or_null(checkpoint);
  // A cut alone, unless the keeper knows better.
  if (!shown.contains("consistency")) shown["consistency"] = "crash";
  return pick("Checkpoint", shown);
}

Result<Json> shown_refpoint(const std::string& volume, const Json& refpoint) {
  if (refpoint.is_null()) return Json();
  if (!refpoint.is_object())
    return failure(ErrorKind::protocol, "the keeper's reference point is not an object");
  Json shown = refpoint;
  shown["volume_id"] = refpoint.contains("volume") ? refpoint["volume"] : Json();
  shown["volume"] = volume;
  shown["group"] = group_or_null(refpoint);
  return pick("Refpoint", shown);
}

Result<Json> shown_cut_part(const std::string& volume, const Json& outcome) {
  Json shown = outcome;
  shown["volume"] = volume;
  shown["checkpoint"] = TRY(
      shown_checkpoint(volume, outcome.contains("checkpoint") ? outcome["checkpoint"] : Json()));
  shown["refpoint"] =
      TRY(shown_refpoint(volume, outcome.contains("refpoint") ? outcome["refpoint"] : Json()));
  return pick("CutPart", shown);
}

}  // namespace berth::control
