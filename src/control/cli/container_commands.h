// `berth container …`: what is more than one action.
//
// With the habits of Docker's and Podman's users. `run`, `exec`, `start -a` and `attach` end with
// the exit code of the program in the container; 125 where Berth itself failed, 126 where the
// program cannot be run, 127 where it is not there.
#pragma once

#include <string>
#include <vector>

#include "control/cli/parser.h"

namespace berth::control::cli {

std::vector<Command> container_commands();

/// Whether the command is one of these.
bool is_container_flow(Flow flow);
int run_container_command(const ParsedLine& line);

/// A command line, and what of it is for the container and not for us: all that follows IMAGE, or
/// the name of `exec`.
struct SplitLine {
  std::vector<std::string> words;
  std::vector<std::string> tail;
};
SplitLine with_command_apart(int argc, const char* const* argv);

/// "[ADDRESS:]HOST:GUEST", "GUEST" (a free port of the host's): a PublishedPort.
Result<nlohmann::json> parse_published_port(const std::string& text);
/// "VOLUME:PATH[:ro]": a ContainerMount.
Result<nlohmann::json> parse_mount(const std::string& text);

}  // namespace berth::control::cli
