// A client of a container (docs/formats/containers.md, "Attach"): this process's standard streams,
// its terminal and its signals, for a process in the container.
//
// With a terminal, keys go there as they are, but ^P ^Q, which detaches; the terminal is as it was
// before whatever ends it. Without, signals that end a process go there too.
//
// Blocking; in a process with one thread.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/cli/api_client.h"

namespace berth::control::cli {

// Exit codes, as of other engines of containers: else it is the program's own.
constexpr int exit_engine_failed = 125;

/// Where a container is attached to: at its keeper's socket, which outlives the daemon; through the
/// daemon by those who may not use that.
struct AttachPoint {
  const ApiClient& daemon;
  std::string container;
  std::string socket;
};

/// Of a Container of the API; `precondition` if it does not run.
Result<AttachPoint> attach_point(const ApiClient& daemon, const nlohmann::json& container);

struct AttachOptions {
  bool input = false;            // ours is sent
  bool terminal = false;         // ours is the process's
  bool quiet = false;            // why it failed is not printed
  std::string fixed_input = {};  // is sent in place of ours; at most 64 KiB
};

/// The exit code of the process; 0 after ^P ^Q. Where it cannot be started: 125, or 126 and 127 of
/// a program that cannot be run or is not there; a message is on standard error then.
int run_attached(const AttachPoint& at, const nlohmann::json& request,
                 const AttachOptions& options);

/// The members `rows` and `columns` of a request, where standard output is a terminal.
void add_terminal_size(nlohmann::json& request);

}  // namespace berth::control::cli
