// Programs of the host: asked a question (what they print, within a limit of time and length), or
// started for work that somebody watches.
//
// Blocking; any thread. The child has no input, none of our descriptors, and no signals blocked or
// ignored.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"

namespace berth::machine {

/// Where $PATH has an executable file of this name, or "".
std::string find_program(const std::string& name);

struct ProgramStart {
  std::vector<std::string> arguments;    // the first is its path, or a name that $PATH has
  std::vector<std::string> environment;  // "NAME=value", beside ours
  std::string directory;                 // that it runs in; "" for ours
  bool own_group = false;                // a process group of its own, which ends with it
};

/// A program that was started. It is killed and reaped with this, its group too if it has one.
class ChildProgram {
 public:
  /// What it prints, on standard output and error, goes to `output`.
  static Result<ChildProgram> start(const ProgramStart& program, const Fd& output);
  ChildProgram(ChildProgram&& other) noexcept;
  ChildProgram& operator=(ChildProgram&&) = delete;
  ~ChildProgram();

  /// Until it has ended: as waitpid(2) puts it.
  int wait();

 private:
  ChildProgram(pid_t pid, bool has_group) : pid_(pid), has_group_(has_group) {}
  int end();

  pid_t pid_;
  bool has_group_;
};

/// Standard output and error of `arguments`, whose first is the program's path; at most 64 KiB.
/// `timed_out` if it has not ended by then; `io_error` if it ends with anything but 0. It is gone
/// when the call returns.
Result<std::string> run_program(const std::vector<std::string>& arguments,
                                std::chrono::milliseconds patience);

}  // namespace berth::machine
