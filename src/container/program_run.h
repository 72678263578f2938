// Programs that do long work for us: started without a shell, watched, ended when they take too
// long or nobody wants the work any more.
//
// Blocking; any thread that lives as long as the work: the kernel ends the program with the thread
// that started it, so that none outlives the daemon. The program has no input, none of our
// descriptors, a process group of its own; all of the group is gone when the call returns.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/result.h"

namespace berth::container {

struct ProgramRun {
  std::string program;  // a name that $PATH has
  std::string package;  // which has it, for who does not
  std::vector<std::string> arguments;
  std::string directory;                 // that it runs in
  std::vector<std::string> environment;  // "NAME=value", beside ours
};

struct ProgramLimits {
  std::stop_token stop;
  std::chrono::milliseconds whole{0};  // 0: none
  /// Called a few times a second: how far the work has come, in any unit. Where neither that
  /// changes nor the program says something for `stall`, it is ended.
  std::function<std::uint64_t()> progress = {};
  std::chrono::milliseconds stall{0};  // 0: none
};

/// `precondition` where the program is missing; `cancelled`; `timed_out`; else `io_error` with its
/// last words, and what it ended with.
Result<void> run_to_end(const ProgramRun& run, const ProgramLimits& limits);

/// The last line of what a program printed, or where it broke, without what loggers put around it:
/// what a person needs to read. At most 500 bytes, printable.
std::string last_words(std::string_view output);

}  // namespace berth::container
