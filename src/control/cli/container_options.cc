#include "control/cli/container_options.h"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "container/container_record.h"
#include "control/cli/client.h"
#include "control/cli/render.h"

namespace berth::control::cli {

using Json = nlohmann::json;

namespace {

Result<std::pair<std::string, std::string>> parse_pair(const std::string& text, const char* what) {
  const std::size_t at = text.find('=');
  if (at == 0 || at == std::string::npos)
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no {}", text, what));
  return std::pair{text.substr(0, at), text.substr(at + 1)};
}

/// Of a NAME alone, the value that it has here; none where it has none.
void add_variable(Json& environment, const std::string& text) {
  if (text.contains('=')) {
    environment.push_back(text);
  } else if (const char* here = std::getenv(text.c_str())) {
    environment.push_back(fmt::format("{}={}", text, here));
  }
}

}  // namespace

// --- What there is to say.

Option flag(std::string short_name, std::string name, std::string description) {
  return {.name = std::move(name),
          .short_name = std::move(short_name),
          .value = {},
          .description = std::move(description)};
}

Option value(std::string short_name, std::string name, std::string what, std::string description) {
  return {.name = std::move(name),
          .short_name = std::move(short_name),
          .value = std::move(what),
          .description = std::move(description)};
}

Option values(std::string short_name, std::string name, std::string what, std::string description) {
  Option option =
      value(std::move(short_name), std::move(name), std::move(what), std::move(description));
  option.repeated = true;
  return option;
}

std::vector<Option> process_options() {
  return {
      values("-e", "--env", "NAME=VALUE", "A variable; of a NAME alone, its value here"),
      value("-u", "--user", "USER", "USER[:GROUP], names or numbers; the image's when left out"),
      value("-w", "--workdir", "DIR", "Working directory; the image's when left out"),
      flag("-i", "--interactive", "Send standard input"), flag("-t", "--tty", "With a terminal")};
}

std::vector<Option> create_options() {
  std::vector<Option> options = process_options();
  const std::vector<Option> more = {
      value("", "--name", "NAME", "Name of the container; c- and eight digits when left out"),
      flag("", "--rm", "Delete it when it has ended"),
      values("", "--env-file", "FILE", "Variables, one a line"),
      values("-v", "--volume", "VOLUME:PATH[:ro]",
             "Mount a volume that has a file system (berth volume create --file-system ext4)"),
      value("", "--overlay", "VOLUME",
            "Keep what it changes in this volume, an ext4; in its memory when left out"),
      values("-p", "--publish", "[ADDRESS:]HOST:PORT",
             "Have a TCP port of this host lead to one of the container; PORT alone: a free one"),
      {.name = "--isolation",
       .value = "machine|process",
       .description = "What it runs in: a microVM of its own (machine, when left out), or the "
                      "host's kernel (process)",
       .names = Names::choices,
       .choices = {"machine", "process"}},
      value("", "--cpus", "N", "CPU time; 1.5 is one and a half CPUs; 1 when left out"),
      value("-m", "--memory", "SIZE", "Memory; 256M when left out"),
      {.name = "--net",
       .value = "none|user",
       .description = "Its network: none, or out through this host's addresses (user)",
       .names = Names::choices,
       .choices = {"none", "user"}},
      value("", "--hostname", "NAME", "Its name for itself; the container's when left out"),
      value("", "--entrypoint", "PROGRAM", "In place of the image's, and of its command"),
      value("", "--stop-signal", "SIGNAL", "What it is asked to end with"),
      value("", "--stop-timeout", "SECONDS", "How long it may take for that; 10 when left out"),
      values("-l", "--label", "NAME=VALUE", "A label"),
      value("", "--park-after", "DURATION|never",
            "Park it when it has been idle for so long (5m), or never; as the daemon's "
            "configuration says when left out"),
      value("", "--log-size", "SIZE", "How much of what it writes is kept; 64M when left out")};
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

// --- What was said.

Result<Json> environment_of(const ParsedLine& line) {
  Json environment = Json::array();
  if (line.has("--env-file")) {
    for (const std::string& path : line.values.at("--env-file")) {
      std::ifstream file(path);
      if (!file) return errno_failure(errno, fmt::format("cannot read '{}'", path));
      for (std::string text; std::getline(file, text);)
        if (!text.empty() && text.front() != '#') add_variable(environment, text);
    }
  }
  if (line.has("--env"))
    for (const std::string& text : line.values.at("--env")) add_variable(environment, text);
  return environment;
}

Result<double> number_of(const std::string& text, const char* option) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0')
    return failure(ErrorKind::invalid_argument, fmt::format("{}: '{}' is no number", option, text));
  return number;
}

Result<Json> specification_of(const ParsedLine& line) {
  Json wanted = {{"environment", TRY(environment_of(line))},
                 {"input", line.has("--interactive")},
                 {"terminal", line.has("--tty")},
                 {"remove", line.has("--rm")}};
  const std::map<std::string, std::string> texts = {{"--name", "name"},
                                                    {"--user", "user"},
                                                    {"--workdir", "working_directory"},
                                                    {"--hostname", "hostname"},
                                                    {"--net", "network"},
                                                    {"--isolation", "isolation"},
                                                    {"--overlay", "overlay"},
                                                    {"--park-after", "park_after"},
                                                    {"--stop-signal", "stop_signal"}};
  for (const auto& [option, member] : texts)
    if (line.has(option)) wanted[member] = line.text(option);
  if (line.has("--entrypoint")) {
    // An empty one: none, not the image's either.
    wanted["entrypoint"] = line.text("--entrypoint").empty()
                               ? Json::array()
                               : Json::array({line.text("--entrypoint")});
  }
  if (line.has("COMMAND")) wanted["command"] = line.values.at("COMMAND");
  if (line.has("--cpus")) wanted["cpus"] = TRY(number_of(line.text("--cpus"), "--cpus"));
  if (line.has("--memory")) wanted["memory"] = TRY(parse_size(line.text("--memory")));
  if (line.has("--log-size")) wanted["log_bytes"] = TRY(parse_size(line.text("--log-size")));
  if (line.has("--stop-timeout")) {
    const double seconds = TRY(number_of(line.text("--stop-timeout"), "--stop-timeout"));
    if (!(seconds >= 0 && seconds <= container::container_stop_timeout_s_max))
      return failure(ErrorKind::invalid_argument, "--stop-timeout: too long");
    wanted["stop_timeout_s"] = static_cast<std::uint64_t>(seconds);
  }
  if (line.has("--publish"))
    for (const std::string& text : line.values.at("--publish"))
      wanted["ports"].push_back(TRY(parse_published_port(text)));
  if (line.has("--volume"))
    for (const std::string& text : line.values.at("--volume"))
      wanted["mounts"].push_back(TRY(parse_mount(text)));
  if (line.has("--label")) {
    for (const std::string& text : line.values.at("--label")) {
      const auto [name, label] = TRY(parse_pair(text, "label"));
      wanted["labels"][name] = label;
    }
  }
  return wanted;
}

Result<void> have_image(const ApiClient& client, const std::string& image) {
  const auto found = client.call(*find_action("image.info"), {{"image", image}});
  if (found || found.error().kind() != ErrorKind::not_found)
    return found ? Result<void>() : failure(found.error());
  fmt::print(stderr, "The image '{}' is not here: fetching it.\n", image);
  const Json job = TRY(client.call(*find_action("image.pull"), {{"image", image}}));
  TRY(wait_for_job(client, job.value("id", "")));
  return {};
}

int report(const Error& error, int code) {
  (void)std::fflush(stdout);
  fmt::print(stderr, "berth: {}\n", render_error(error));
  return code;
}

Result<Json> parse_published_port(const std::string& text) {
  const auto wrong = [&text] {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no [ADDRESS:]HOST:PORT", text));
  };
  const auto port_of = [](std::string_view digits) -> std::optional<unsigned> {
    unsigned port = 0;
    if (digits.empty() || digits.size() > 5) return std::nullopt;
    for (const char c : digits) {
      if (c < '0' || c > '9') return std::nullopt;
      port = port * 10 + static_cast<unsigned>(c - '0');
    }
    return port <= 65'535 ? std::optional(port) : std::nullopt;
  };
  std::string rest = text;
  if (rest.ends_with("/tcp")) rest.resize(rest.size() - 4);
  const std::size_t last = rest.rfind(':');
  const auto guest =
      port_of(std::string_view(rest).substr(last == std::string::npos ? 0 : last + 1));
  if (!guest || *guest == 0) return wrong();
  Json port = {{"guest_port", *guest}, {"host_port", 0}};
  if (last == std::string::npos) return port;
  rest.resize(last);
  const std::size_t before = rest.rfind(':');
  const std::string host = rest.substr(before == std::string::npos ? 0 : before + 1);
  if (!host.empty()) {
    const auto number = port_of(host);
    if (!number) return wrong();
    port["host_port"] = *number;
  }
  if (before != std::string::npos) {
    std::string address = rest.substr(0, before);
    if (address.starts_with('[') && address.ends_with(']'))
      address = address.substr(1, address.size() - 2);
    if (address.empty()) return wrong();
    port["host_address"] = address;
  }
  return port;
}

Result<Json> parse_mount(const std::string& text) {
  const std::size_t first = text.find(':');
  if (first == 0 || first == std::string::npos)
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no VOLUME:PATH[:ro]", text));
  std::string path = text.substr(first + 1);
  const bool read_only = path.ends_with(":ro");
  if (read_only || path.ends_with(":rw")) path.resize(path.size() - 3);
  return Json{{"volume", text.substr(0, first)}, {"path", path}, {"read_only", read_only}};
}

}  // namespace berth::control::cli
