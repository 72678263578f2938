// Commands that talk to the daemon, from parameters to the exit code.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "control/cli/api_client.h"
#include "control/cli/parser.h"

namespace berth::control::cli {

/// Carries the line out, writes to standard output and standard error; the exit code (exit_code.h).
int run_client(const ParsedLine& line);

ApiClient client_of(const Globals& globals);
/// Shows how far a job has come, to its end: its result, or why there is none. The first interrupt
/// cancels it.
Result<nlohmann::json> wait_for_job(const ApiClient& client, const std::string& id);

/// `berth daemon --stop`, `--stop-machines` and `--stop-keepers`.
int run_stop(const ParsedLine& line);

/// `berth internal complete`'s names: what the daemon knows; nothing where none runs.
std::vector<std::string> known_names(const Globals& globals, Names kind);

}  // namespace berth::control::cli
