// From argv to a command and its words, by the list of commands.
//
// --help, --version and mistakes are answered here, on standard output and standard error.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/cli/command.h"

namespace berth::control::cli {

/// What every command takes, with what stands in where it was left out.
struct Globals {
  std::string state_dir = "/var/lib/berth";
  std::string run_dir = "/run/berth";
  std::string socket;  // of the daemon
  bool json = false;
};

struct ParsedLine {
  const Command* command = nullptr;
  Globals globals;
  /// As typed: by option ("--size"; a flag has "true"), and by positional ("VOLUME").
  std::map<std::string, std::vector<std::string>> values;

  bool has(const std::string& name) const { return values.contains(name); }
  std::string text(const std::string& name) const {
    return has(name) ? values.at(name).front() : std::string();
  }
};

struct ParseOutcome {
  std::optional<ParsedLine> line;  // nothing: the process is to end
  int exit_code = 0;               // with this
};

ParseOutcome parse_line(int argc, const char* const* argv);

/// The parameters of the command's action: sizes with their suffixes resolved, files with absolute
/// paths. invalid_argument says which word does not fit.
Result<nlohmann::json> action_parameters(const ParsedLine& line);

/// Those of the command's action on a machine, whose name is where a volume's would be.
Result<nlohmann::json> machine_parameters(const ParsedLine& line);

/// "disk1@monday" as its two names.
struct PointAddress {
  std::string volume;
  std::string point;
};
Result<PointAddress> parse_point_address(const std::string& text);

/// Against the working directory.
std::string absolute_path(const std::string& path);

}  // namespace berth::control::cli
