#include "control/command_line.h"

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/cli/client.h"
#include "control/cli/man_page.h"
#include "control/cli/parser.h"
#include "control/exit_code.h"
#include "control/openapi.h"

namespace berth::control {
namespace {

using cli::Flow;
using cli::ParsedLine;

constexpr std::int64_t watchdog_limit_ms_max = 24LL * 3600 * 1000;

int usage_error(const std::string& message) {
  fmt::print(stderr, "berth: {}\n", message);
  return exit_usage;
}

/// A number of seconds, with a fraction or without.
std::optional<double> parse_seconds(const std::string& text) {
  double seconds = 0;
  const auto [stop, code] =
      std::from_chars(text.data(), text.data() + text.size(), seconds, std::chars_format::fixed);
  if (code != std::errc{} || stop != text.data() + text.size() || !(seconds >= 0) || seconds > 1e9)
    return std::nullopt;
  return seconds;
}

std::optional<std::int64_t> parse_whole(const std::string& text) {
  std::int64_t number = 0;
  const auto [stop, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc{} || stop != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

/// The number of a descriptor that whoever started us has left open for us.
std::optional<int> parse_inherited(const std::string& text) {
  const auto fd = parse_whole(text);
  if (!fd || *fd < 3 || *fd > std::numeric_limits<int>::max()) return std::nullopt;
  return static_cast<int>(*fd);
}

int start_daemon(const ParsedLine& line, const Programs& programs) {
  if (line.has("--stop") || line.has("--stop-keepers") || line.has("--stop-machines"))
    return cli::run_stop(line);
  DaemonOptions options{.state_dir = line.globals.state_dir,
                        .run_dir = line.globals.run_dir,
                        .listen = line.text("--listen"),
                        .tls_dir = line.has("--tls-dir")
                                       ? cli::absolute_path(line.text("--tls-dir"))
                                       : std::string()};
  if (line.has("--memory-dir")) options.memory_dir = cli::absolute_path(line.text("--memory-dir"));
  if (line.has("--config")) options.configuration_file = cli::absolute_path(line.text("--config"));
  if (line.has("--keeper-idle")) {
    const auto seconds = parse_seconds(line.text("--keeper-idle"));
    if (!seconds)
      return usage_error(
          fmt::format("'{}' is not a number of seconds", line.text("--keeper-idle")));
    options.keeper_idle = std::chrono::milliseconds(static_cast<std::int64_t>(*seconds * 1000));
  }
  return programs.daemon(options);
}

int start_keeper(const ParsedLine& line, const Programs& programs) {
  KeeperArguments arguments{.state_dir = line.globals.state_dir,
                            .run_dir = line.globals.run_dir,
                            .id = line.text("--id"),
                            .volume = line.text("--volume"),
                            .machine = line.text("--machine"),
                            .container = line.text("--container"),
                            .memory_dir = line.text("--memory-dir"),
                            .preload = line.text("--preload")};
  if (line.has("--listen-fd")) {
    for (const std::string& text : line.values.at("--listen-fd")) {
      const auto fd = parse_inherited(text);
      if (!fd) return usage_error(fmt::format("'{}' is not an inherited descriptor", text));
      arguments.listen_fds.push_back(*fd);
    }
  }
  if (!arguments.machine.empty()) return programs.machine_keeper(arguments);
  if (!arguments.container.empty()) return programs.container_keeper(arguments);
  if (arguments.volume.empty() || arguments.id.empty())
    return usage_error("a keeper needs --id and --volume, or --machine, or --container");
  return programs.keeper(arguments);
}

int start_watchdog(const ParsedLine& line, const Programs& programs) {
  const auto fd = parse_inherited(line.text("--fd"));
  if (!fd)
    return usage_error(fmt::format("'{}' is not an inherited descriptor", line.text("--fd")));
  const auto limit_ms = parse_whole(line.text("--limit-ms"));
  if (!limit_ms || *limit_ms > watchdog_limit_ms_max) {
    return usage_error(
        fmt::format("'{}' is not a number of milliseconds", line.text("--limit-ms")));
  }
  return programs.watchdog({.agent_socket = line.text("--agent-socket"),
                            .fd = *fd,
                            .limit = std::chrono::milliseconds(*limit_ms)});
}

int print_completion(const ParsedLine& line) {
  const auto script = cli::completion_script(line.text("SHELL"));
  if (!script) return usage_error(script.error().message());
  fmt::print("{}", *script);
  return exit_done;
}

int print_internal(const ParsedLine& line) {
  const std::string what = line.text("WHAT");
  if (what == "actions") {
    fmt::print("{}\n", action_table().dump(2));
  } else if (what == "openapi") {
    fmt::print("{}", openapi_yaml());
  } else if (what == "openapi-json") {
    fmt::print("{}\n", openapi_document().dump(2));
  } else if (what == "man") {
    fmt::print("{}", cli::man_page());
  } else if (what == "complete") {
    const auto words = line.has("WORD") ? line.values.at("WORD") : std::vector<std::string>();
    const auto names = [&line](cli::Names kind) { return cli::known_names(line.globals, kind); };
    for (const std::string& word : cli::complete(words, names)) fmt::print("{}\n", word);
  } else {
    return usage_error(fmt::format("'{}' is not something to print", what));
  }
  return exit_done;
}

}  // namespace

int run_command_line(int argc, const char* const* argv, const Programs& programs) {
  const auto parsed = cli::parse_line(argc, argv);
  if (!parsed.line) return parsed.exit_code;
  switch (parsed.line->command->flow) {
    case Flow::daemon: return start_daemon(*parsed.line, programs);
    case Flow::keeper: return start_keeper(*parsed.line, programs);
    case Flow::watchdog: return start_watchdog(*parsed.line, programs);
    case Flow::completion: return print_completion(*parsed.line);
    case Flow::internal: return print_internal(*parsed.line);
    default: return cli::run_client(*parsed.line);
  }
}

}  // namespace berth::control
