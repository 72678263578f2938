// docs/openapi.yaml, made from the lists of actions and schemas. Pure.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace berth::control {

/// The OpenAPI 3.1 description of the API.
nlohmann::ordered_json openapi_document();

/// The same as YAML, as it is in docs/openapi.yaml.
std::string openapi_yaml();

/// The list of actions, for tests: [{name, method, path, answer, status, result, parameters,
/// errors}, …].
nlohmann::ordered_json action_table();

/// Any JSON value as block-style YAML.
std::string to_yaml(const nlohmann::ordered_json& value);

}  // namespace berth::control
