// One process of the image: from what was asked for to a running program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

#include "agent/users.h"
#include "base/fd.h"
#include "base/result.h"

namespace berth::agent {

struct ChildSpec {
  std::vector<std::string> arguments;    // at least one; the first is the program
  std::vector<std::string> environment;  // "NAME=value"; PATH, HOME and TERM are added
  std::string working_directory = "/";
  User user;
  bool has_terminal = false;
  bool has_input = false;  // without one and without a terminal: /dev/null
  std::uint16_t rows = 0;
  std::uint16_t columns = 0;
  int cgroup = -1;  // a directory; it is joined before anything of the image runs
};

/// Our ends, not blocking.
struct Child {
  pid_t pid = -1;
  Fd input, output, errors;  // pipes, or none
  Fd terminal;               // the master, or none
  Fd terminal_kept;  // the other side: a terminal that nobody has open says that it has ended
  Fd report;         // ends when the program runs, or has a StartFailure first
};

/// What a child says that could not become the program.
struct StartFailure {
  enum class Step : std::uint32_t { prepare, user, working_directory, program };
  Step step = Step::prepare;
  std::int32_t errno_value = 0;
};

/// Its session is its own, and so is its process group. That it runs is known from `report`.
Result<Child> start_child(const ChildSpec& spec);

/// In a child: every signal does what it does by default, and none waits.
void reset_signals();

/// The failure in a person's words, and the status that a shell would end with: 127 where there is
/// no such program, 126 where it cannot be run, 125 for the rest.
Error describe(const StartFailure& start_failure, const ChildSpec& spec);
int shell_status(const StartFailure& start_failure);

}  // namespace berth::agent
