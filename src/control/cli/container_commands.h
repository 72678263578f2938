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
/// the name of `exec`, or the -- of `template create`.
struct SplitLine {
  std::vector<std::string> words;
  std::vector<std::string> tail;
};
SplitLine with_command_apart(int argc, const char* const* argv);

}  // namespace berth::control::cli
