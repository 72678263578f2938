// Commands that talk to the daemon, from parameters to the exit code.
#pragma once

#include "control/cli/parser.h"

namespace berth::control::cli {

/// Carries the line out, writes to standard output and standard error; the exit code (exit_code.h).
int run_client(const ParsedLine& line);

/// `berth daemon --stop`, `--stop-machines` and `--stop-keepers`.
int run_stop(const ParsedLine& line);

/// `berth internal complete`'s names: what the daemon knows; nothing where none runs.
std::vector<std::string> known_names(const Globals& globals, Names kind);

}  // namespace berth::control::cli
