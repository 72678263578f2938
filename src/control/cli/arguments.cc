// parser.h: from words to an action's parameters.

#include <algorithm>
#include <charconv>
#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "control/cli/parser.h"
#include "control/router.h"

namespace berth::control::cli {
namespace {

using Json = nlohmann::json;
using Type = Parameter::Type;

const Parameter& parameter_of(const Action& action, std::string_view name) {
  const auto found = std::ranges::find(action.parameters, name, &Parameter::name);
  CHECK(found != action.parameters.end());
  return *found;
}

/// A backing may be a file, and then the daemon needs its whole path.
std::string whole_backing(const std::string& text) {
  std::error_code error;
  return std::filesystem::exists(text, error) ? absolute_path(text) : text;
}

/// As other tools write an OCI layout.
std::string without_oci(const std::string& text) {
  constexpr std::string_view transport = "oci:";
  return text.starts_with(transport) ? text.substr(transport.size()) : text;
}

Result<Json> convert(const Parameter& parameter, const std::vector<std::string>& words) {
  const std::string& word = words.front();
  switch (parameter.type) {
    case Type::size: return TRY(parse_size(word));
    case Type::count: {
      std::uint64_t number = 0;
      const auto [stop, code] = std::from_chars(word.data(), word.data() + word.size(), number);
      if (code == std::errc{} && stop == word.data() + word.size() && !word.empty()) return number;
      return failure(ErrorKind::invalid_argument, fmt::format("'{}' is not a whole number", word));
    }
    case Type::flag: return true;
    case Type::path: return absolute_path(parameter.name == "archive" ? without_oci(word) : word);
    case Type::volume_names:
    case Type::texts: return Json(words);
    case Type::text: return parameter.name == "backing" ? whole_backing(word) : word;
    default: return word;
  }
}

Result<void> set(Json& parameters, const Action& action, const std::string& name,
                 const std::vector<std::string>& words) {
  const Parameter& parameter = parameter_of(action, name);
  const Json value = TRY(convert(parameter, words));
  parameters[name] = TRY(check_parameter(parameter, value));
  return {};
}

Result<void> set_option(Json& parameters, const Action& action, const ParsedLine& line,
                        const Option& option) {
  if (!option.flag_value.empty())
    return set(parameters, action, option.parameter, {option.flag_value});
  return set(parameters, action, option.parameter, line.values.at(option.name));
}

Result<void> set_positional(Json& parameters, const Action& action, const Positional& positional,
                            const std::vector<std::string>& words) {
  const std::size_t at = positional.parameter.find('@');
  if (at == std::string::npos) return set(parameters, action, positional.parameter, words);
  auto address = parse_point_address(words.front());
  if (!address)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no {}", words.front(), positional.name));
  TRY(set(parameters, action, positional.parameter.substr(0, at), {address->volume}));
  return set(parameters, action, positional.parameter.substr(at + 1), {address->point});
}

}  // namespace

Result<PointAddress> parse_point_address(const std::string& text) {
  const std::size_t at = text.find('@');
  if (at == std::string::npos || at == 0 || at + 1 == text.size()) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not of the form VOLUME@NAME", text));
  }
  return PointAddress{.volume = text.substr(0, at), .point = text.substr(at + 1)};
}

Result<Json> action_parameters(const ParsedLine& line) {
  Json parameters = Json::object();
  const Command& command = *line.command;
  if (command.action == nullptr) return parameters;
  for (const Positional& positional : command.positionals) {
    if (positional.parameter.empty() || !line.has(positional.name)) continue;
    TRY(set_positional(parameters, *command.action, positional, line.values.at(positional.name)));
  }
  for (const Option& option : command.options) {
    if (option.machine_only && line.has(option.name)) {
      return failure(
          ErrorKind::invalid_argument,
          fmt::format("{} is for machines, and none of that name is there", option.name));
    }
    if (option.parameter.empty() || !line.has(option.name)) continue;
    TRY(set_option(parameters, *command.action, line, option));
  }
  return parameters;
}

Result<Json> machine_parameters(const ParsedLine& line) {
  Json parameters = Json::object();
  const Command& command = *line.command;
  const Action& action = *command.machine_action;
  for (Positional positional : command.positionals) {
    if (positional.parameter.empty() || !line.has(positional.name)) continue;
    const auto& words = line.values.at(positional.name);
    if (words.size() > 1)
      return failure(ErrorKind::invalid_argument, "a checkpoint is of one machine, or of volumes");
    const std::size_t at = positional.parameter.find('@');
    if (at != std::string::npos) {
      positional.parameter = "machine" + positional.parameter.substr(at);
    } else if (positional.parameter == "volume" || positional.parameter == "volumes") {
      positional.parameter = "machine";
    }
    TRY(set_positional(parameters, action, positional, words));
  }
  for (const Option& option : command.options) {
    if (option.parameter.empty() || !line.has(option.name)) continue;
    if (std::ranges::find(action.parameters, option.parameter, &Parameter::name) ==
        action.parameters.end()) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{} is for volumes, not for machines", option.name));
    }
    TRY(set_option(parameters, action, line, option));
  }
  return parameters;
}

}  // namespace berth::control::cli
