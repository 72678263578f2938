// From a request line to an action, and from what the request carries to checked parameters.
//
// Pure. Everything from outside is checked here, so that what carries an action out sees only
// parameters that exist, of the right type, with names that are names: `invalid_argument`
// otherwise, saying which.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/actions.h"

namespace berth::control {

constexpr std::size_t text_parameter_length_max = 4096;  // bytes
constexpr std::size_t volumes_in_cut_max = 64;

struct Route {
  const Action* action = nullptr;
  std::map<std::string, std::string> path_parameters;
  std::map<std::string, std::string> query_parameters;
};

/// `not_found` for a path that no action has. A path that has other methods only is `unsupported`,
/// and `allowed_methods` then says which.
Result<Route> find_route(std::string_view method, std::string_view target,
                         std::string* allowed_methods = nullptr);

/// One object with all parameters of the action, from everywhere. `body` is the request's, "" for
/// none.
Result<nlohmann::json> gather_parameters(const Route& route, std::string_view body);

/// One parameter's value, checked. Text stands for numbers and flags where it comes from a query.
Result<nlohmann::json> check_parameter(const Parameter& parameter, const nlohmann::json& value);

/// The other direction, for clients: method, target and body of a call.
struct HttpCall {
  std::string_view method;
  std::string target;
  std::string body;  // "" for none
};
HttpCall make_call(const Action& action, const nlohmann::json& parameters);

}  // namespace berth::control
