#include "control/container_creation.h"

#include <algorithm>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

constexpr std::size_t name_digits = 8;

Result<std::optional<std::vector<std::string>>> take_words(Json& request, const char* name) {
  const auto found = request.find(name);
  if (found == request.end() || found->is_null()) {
    request.erase(name);
    return std::nullopt;
  }
  std::vector<std::string> words;
  const bool is_list = found->is_array() && std::ranges::all_of(*found, [](const Json& word) {
                         return word.is_string();
                       });
  if (!is_list)
    return failure(ErrorKind::invalid_argument, fmt::format("{}: expected a list of texts", name));
  for (const Json& word : *found) words.push_back(word.get<std::string>());
  request.erase(name);
  return words;
}

std::string_view name_of(std::string_view variable) {
  return variable.substr(0, variable.find('='));
}

/// Later ones replace earlier ones of the same name.
std::vector<std::string> merged(std::vector<std::string> variables,
                                const std::vector<std::string>& over) {
  for (const std::string& variable : over) {
    std::erase_if(variables,
                  [&](const std::string& old) { return name_of(old) == name_of(variable); });
    variables.push_back(variable);
  }
  return variables;
}

void complete_names(container::ContainerSpecification& wanted) {
  if (wanted.name.empty())
    wanted.name = "c-" + SystemRandom().id().to_string().substr(0, name_digits);
  if (!wanted.hostname.empty()) return;
  wanted.hostname = wanted.name;
  std::ranges::replace(wanted.hostname, '_', '-');
}

/// What a daemon that starts would take for its own, and remove; or mix up with what waits.
Result<void> check_not_ours(const container::ContainerSpecification& wanted) {
  if (wanted.labels.contains(template_label)) {
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("labels: '{}' is that of templates that are being made", template_label));
  }
  const std::string_view name = wanted.name;
  if (name.starts_with(waiting_prefix) && name.size() == waiting_prefix.size() + waiting_digits &&
      name.find_first_not_of("0123456789abcdef", waiting_prefix.size()) == std::string_view::npos) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("name: '{}' is that of a clone that waits: choose another", name));
  }
  return {};
}

Result<void> check_members_of_clone(const Json& request, bool several) {
  static const std::set<std::string> own = {"name",           "hostname",  "ports",
                                            "labels",         "remove",    "stop_signal",
                                            "stop_timeout_s", "log_bytes", "park_after"};
  if (!request.is_object()) return failure(ErrorKind::invalid_argument, "expected an object");
  for (const auto& [name, value] : request.items()) {
    if (!own.contains(name))
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{}: a clone has that of its template", name));
  }
  if (several && request.contains("hostname"))
    return failure(ErrorKind::invalid_argument, "hostname: several clones cannot have the same");
  return {};
}

}  // namespace

container::ContainerSpecification clone_of(const container::TemplateRecipe& recipe) {
  container::ContainerSpecification clone = recipe.specification;
  clone.template_name = recipe.name;
  return clone;
}

Result<std::vector<container::ContainerSpecification>> clone_specifications(
    Json request, const container::TemplateRecipe& of, std::size_t count) {
  TRY(check_members_of_clone(request, count > 1));
  const auto asked = TRY(container::decode_container(request));
  container::ContainerSpecification alike = clone_of(of);
  alike.name = asked.name;
  alike.hostname = asked.hostname;
  alike.ports = asked.ports;
  alike.remove = asked.remove;
  for (const auto& [name, label] : asked.labels) alike.labels[name] = label;
  if (request.contains("stop_signal")) alike.stop_signal = asked.stop_signal;
  if (request.contains("stop_timeout_s")) alike.stop_timeout_s = asked.stop_timeout_s;
  if (request.contains("park_after")) alike.park_after = asked.park_after;
  if (request.contains("log_bytes")) alike.log_bytes = asked.log_bytes;
  if (count > 1) {
    for (const container::PublishedPort& port : alike.ports) {
      if (port.host_port == 0) continue;
      return failure(ErrorKind::invalid_argument,
                     fmt::format("ports: several clones cannot have the port {} of the host: "
                                 "leave it out, and each gets a free one",
                                 port.host_port));
    }
  }
  std::vector<container::ContainerSpecification> all;
  for (std::size_t i = 1; i <= count; ++i) {
    container::ContainerSpecification one = alike;
    if (count > 1 && !one.name.empty()) one.name += fmt::format("-{}", i);
    complete_names(one);
    TRY(check_not_ours(one));
    TRY(container::check(one));
    all.push_back(std::move(one));
  }
  return all;
}

Result<container::ContainerSpecification> complete_container(Json request,
                                                             const container::ImageRecord& image,
                                                             const std::string& image_name) {
  if (request.contains("arguments") || request.contains("image"))
    return failure(ErrorKind::invalid_argument,
                   "give `entrypoint` and `command`, and the image beside the specification");
  if (request.contains("template"))
    return failure(ErrorKind::invalid_argument, "template: clones are made with container.clone");
  const auto entrypoint = TRY(take_words(request, "entrypoint"));
  const auto command = TRY(take_words(request, "command"));
  const bool has_signal = request.contains("stop_signal");
  auto wanted = TRY(container::decode_container(request));
  const container::RunConfig& config = image.config;
  wanted.image = image.digest;
  wanted.image_name = image_name;
  wanted.arguments = entrypoint ? *entrypoint : config.entrypoint;
  const std::vector<std::string> own = entrypoint ? std::vector<std::string>() : config.command;
  for (const std::string& word : command ? *command : own) wanted.arguments.push_back(word);
  wanted.environment = merged(config.environment, wanted.environment);
  if (wanted.working_directory.empty()) wanted.working_directory = config.working_directory;
  if (wanted.user.empty()) wanted.user = config.user;
  if (!has_signal && !config.stop_signal.empty()) wanted.stop_signal = config.stop_signal;
  complete_names(wanted);
  TRY(check_not_ours(wanted));
  TRY(container::check(wanted));
  return wanted;
}

}  // namespace berth::control
