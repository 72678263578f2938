// Programs of the host, asked a question: what they print, within a limit of time and length.
//
// Blocking; any thread. The child has no input, none of our descriptors, and no signals blocked; it
// is gone when the call returns.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/result.h"

namespace berth::machine {

/// Where $PATH has an executable file of this name, or "".
std::string find_program(const std::string& name);

/// Standard output and error of `arguments`, whose first is the program's path; at most 64 KiB.
/// `timed_out` if it has not ended by then; `io_error` if it ends with anything but 0.
Result<std::string> run_program(const std::vector<std::string>& arguments,
                                std::chrono::milliseconds patience);

}  // namespace berth::machine
