// `berth template …` and `berth container clone`.
#pragma once

#include <vector>

#include "control/cli/parser.h"

namespace berth::control::cli {

std::vector<Command> template_commands();

/// Whether the command is one of those that are more than one action.
bool is_template_flow(Flow flow);
int run_template_command(const ParsedLine& line);

}  // namespace berth::control::cli
