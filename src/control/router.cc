#include "control/router.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <vector>

#include <boost/url/encode.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/rfc/unreserved_chars.hpp>
#include <boost/url/url_view.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "machine/control_protocol.h"
#include "machine/layout.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using Type = Parameter::Type;
namespace urls = boost::urls;

std::vector<std::string_view> split_path(std::string_view path) {
  std::vector<std::string_view> segments;
  while (!path.empty()) {
    path.remove_prefix(1);  // '/'
    const std::size_t end = std::min(path.find('/'), path.size());
    segments.push_back(path.substr(0, end));
    path.remove_prefix(end);
  }
  return segments;
}

bool is_placeholder(std::string_view segment) { return segment.starts_with('{'); }

std::string_view placeholder_name(std::string_view segment) {
  return segment.substr(1, segment.size() - 2);
}

/// What the placeholders of `pattern` stand for in `path`; nothing if it is another path.
std::optional<std::map<std::string, std::string>> match_path(std::string_view pattern,
                                                             const std::vector<std::string>& path) {
  const auto segments = split_path(pattern);
  if (segments.size() != path.size()) return std::nullopt;
  std::map<std::string, std::string> found;
  for (std::size_t i = 0; i < path.size(); ++i) {
    if (is_placeholder(segments[i])) {
      found.emplace(placeholder_name(segments[i]), path[i]);
    } else if (segments[i] != path[i]) {
      return std::nullopt;
    }
  }
  return found;
}

std::unexpected<Error> refuse(const Parameter& parameter, std::string_view expected) {
  return failure(ErrorKind::invalid_argument,
                 fmt::format("the parameter '{}' must be {}", parameter.name, expected));
}

Result<Json> check_number(const Parameter& parameter, const Json& value) {
  constexpr auto expected = "a whole number, not negative";
  if (value.is_number_unsigned()) return value;
  if (!value.is_string() || parameter.place != Parameter::Place::query)
    return refuse(parameter, expected);
  const auto& text = value.get_ref<const std::string&>();
  std::uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, code] = std::from_chars(text.data(), end, number);
  if (code != std::errc{} || stop != end || text.empty()) return refuse(parameter, expected);
  return number;
}

Result<Json> check_flag(const Parameter& parameter, const Json& value) {
  if (value.is_boolean()) return value;
  if (parameter.place == Parameter::Place::query && value == "true") return true;
  if (parameter.place == Parameter::Place::query && value == "false") return false;
  return refuse(parameter, "true or false");
}

Result<Json> check_text(const Parameter& parameter, const Json& value) {
  if (!value.is_string()) return refuse(parameter, "a text");
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty() || text.size() > text_parameter_length_max || text.contains('\0')) {
    return refuse(parameter, fmt::format("a text of 1 to {} bytes", text_parameter_length_max));
  }
  switch (parameter.type) {
    case Type::volume_name: TRY(machine::check_name("volume", text)); break;
    case Type::machine_name: TRY(machine::check_name("machine", text)); break;
    case Type::point_name:
      TRY(machine::check_point_name("checkpoint or reference point", text));
      break;
    case Type::path:
      if (text.front() != '/' || text.back() == '/')
        return refuse(parameter, "the absolute path of a file");
      break;
    case Type::address:
      if (text.find_last_of(':') == std::string::npos)
        return refuse(parameter, "an address and a port, host:port");
      break;
    case Type::id:
      if (!Id128::parse(text)) return refuse(parameter, "an id of 32 hexadecimal digits");
      break;
    case Type::choice:
      if (std::ranges::find(parameter.choices, text) == parameter.choices.end()) {
        return refuse(parameter, fmt::format("one of {}", fmt::join(parameter.choices, ", ")));
      }
      break;
    default: break;
  }
  return value;
}

Result<Json> check_texts(const Parameter& parameter, const Json& value) {
  if (!value.is_array()) return refuse(parameter, "a list of texts");
  for (const Json& text : value) TRY(check_text(parameter, text));
  return value;
}

Result<Json> check_volume_names(const Parameter& parameter, const Json& value) {
  if (!value.is_array() || value.empty()) return refuse(parameter, "a list of names, at least one");
  if (value.size() > volumes_in_cut_max) {
    return refuse(parameter, fmt::format("a list of at most {} names", volumes_in_cut_max));
  }
  std::set<std::string> seen;
  for (const Json& name : value) {
    if (!name.is_string()) return refuse(parameter, "a list of names");
    TRY(machine::check_name("volume", name.get_ref<const std::string&>()));
    if (!seen.insert(name.get<std::string>()).second)
      return refuse(parameter, "a list without repetition");
  }
  return value;
}

Result<Json> parse_body(std::string_view body) {
  if (body.empty()) return Json::object();
  auto parsed = machine::parse_json(body);
  if (!parsed)
    return failure(ErrorKind::invalid_argument, "the body is " + parsed.error().context());
  if (!parsed->is_object())
    return failure(ErrorKind::invalid_argument, "the body is not a JSON object");
  return parsed;
}

std::string encode(std::string_view text) { return urls::encode(text, urls::unreserved_chars); }

std::string as_text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

Result<Route> find_route(std::string_view method, std::string_view target,
                         std::string* allowed_methods) {
  const auto url = urls::parse_origin_form(target);
  if (!url) return failure(ErrorKind::invalid_argument, "the request's target is not a path");
  std::vector<std::string> path;
  for (const auto& segment : url->segments()) path.emplace_back(segment);

  std::string others;
  for (const Action& action : actions()) {
    auto parameters = match_path(action.path, path);
    if (!parameters) continue;
    if (to_string(action.method) != method) {
      others += (others.empty() ? "" : ", ") + std::string(to_string(action.method));
      continue;
    }
    Route route{
        .action = &action, .path_parameters = std::move(*parameters), .query_parameters = {}};
    for (const auto& parameter : url->params()) {
      if (!route.query_parameters.emplace(parameter.key, parameter.value).second) {
        return failure(ErrorKind::invalid_argument, fmt::format("the parameter '{}' is given twice",
                                                                std::string(parameter.key)));
      }
    }
    return route;
  }
  if (others.empty())
    return failure(ErrorKind::not_found, fmt::format("there is nothing at {}", target));
  if (allowed_methods != nullptr) *allowed_methods = others;
  return failure(ErrorKind::unsupported,
                 fmt::format("{} takes {}, not {}", target, others, method));
}

Result<Json> check_parameter(const Parameter& parameter, const Json& value) {
  switch (parameter.type) {
    case Type::size:
    case Type::count: return check_number(parameter, value);
    case Type::flag: return check_flag(parameter, value);
    case Type::object:
      if (value.is_object()) return value;
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{}: expected an object", parameter.name));
    case Type::volume_names: return check_volume_names(parameter, value);
    case Type::texts: return check_texts(parameter, value);
    default: return check_text(parameter, value);
  }
}

Result<Json> gather_parameters(const Route& route, std::string_view body) {
  const Json from_body = TRY(parse_body(body));
  Json given = Json::object();
  std::size_t used = 0;
  for (const Parameter& parameter : route.action->parameters) {
    const std::string name(parameter.name);
    Json value;
    switch (parameter.place) {
      case Parameter::Place::path: value = route.path_parameters.at(name); break;
      case Parameter::Place::query:
        if (const auto found = route.query_parameters.find(name);
            found != route.query_parameters.end()) {
          value = found->second;
          ++used;
        }
        break;
      case Parameter::Place::body:
        if (const auto found = from_body.find(name); found != from_body.end()) {
          value = *found;
          ++used;
        }
        break;
    }
    if (!value.is_null()) {
      given[name] = TRY(check_parameter(parameter, value));
    } else if (parameter.required) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("the parameter '{}' is missing", name));
    }
  }
  if (used == route.query_parameters.size() + from_body.size()) return given;

  // Something was given that the action does not take: say what.
  const auto takes = [&route](std::string_view name, Parameter::Place place) {
    return std::ranges::any_of(route.action->parameters, [&](const Parameter& parameter) {
      return parameter.name == name && parameter.place == place;
    });
  };
  std::string unknown;
  for (const auto& [name, value] : route.query_parameters) {
    if (!takes(name, Parameter::Place::query)) unknown = name;
  }
  for (const auto& [name, value] : from_body.items()) {
    if (!takes(name, Parameter::Place::body)) unknown = name;
  }
  return failure(ErrorKind::invalid_argument,
                 fmt::format("{} takes no parameter '{}' there", route.action->name, unknown));
}

HttpCall make_call(const Action& action, const Json& parameters) {
  HttpCall call{.method = to_string(action.method), .target = {}, .body = {}};
  for (const std::string_view segment : split_path(action.path)) {
    call.target += '/';
    if (is_placeholder(segment)) {
      call.target += encode(as_text(parameters.at(std::string(placeholder_name(segment)))));
    } else {
      call.target += segment;
    }
  }
  Json body = Json::object();
  char separator = '?';
  for (const Parameter& parameter : action.parameters) {
    const auto found = parameters.find(parameter.name);
    if (found == parameters.end()) continue;
    if (parameter.place == Parameter::Place::query) {
      call.target += separator + std::string(parameter.name) + '=' + encode(as_text(*found));
      separator = '&';
    } else if (parameter.place == Parameter::Place::body) {
      body[std::string(parameter.name)] = *found;
    }
  }
  if (!body.empty()) call.body = machine::format_json(body);
  return call;
}

}  // namespace berth::control
