// Looks into a container that runs, for whoever waits for it to be ready: programs run to their
// end, and ready probes.
#pragma once

#include <string>

#include "container/container.h"
#include "container/ready_probe.h"

namespace berth::container {

struct ProgramResult {
  ProcessEnd end;
  std::string output;  // the last of it, and of its errors, as it came
};
constexpr std::size_t program_output_max = 2048;

/// With the container's environment, directory and user. `timed_out` when it runs for longer: it is
/// killed then.
Task<Result<ProgramResult>> run_program_in(UringLoop& loop, Container& container,
                                           std::vector<std::string> arguments, Duration timeout);

/// One look, of a few seconds at the most: "" if it is ready, else why it is not.
Task<Result<std::string>> look_whether_ready(UringLoop& loop, Container& container,
                                             ReadyProbe probe);

}  // namespace berth::container
