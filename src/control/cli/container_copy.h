// `berth container cp`: files between a container and this host, as a tar that the host's tar packs
// and unpacks.
#pragma once

#include <string>

#include "control/cli/api_client.h"
#include "control/cli/parser.h"

namespace berth::control::cli {

/// Blocking; in a process with one thread, whose standard input or output it uses up. The exit
/// code.
int copy_container_files(const ParsedLine& line, const ApiClient& client);

}  // namespace berth::control::cli
