// Other processes, known by pidfd: a number that no later process can have.
//
// Plain system calls; each is short, but for wait_for_end(). Any thread.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"

namespace berth {

/// Watches a process that somebody else has started. `not_found` if it is gone.
Result<Fd> open_pidfd(pid_t pid);
/// Whether the process has ended, without waiting for it; a child that nobody has reaped has ended.
bool has_ended(const Fd& pidfd);
/// Blocks until it has, but not longer than this; whether it has.
bool wait_for_end(const Fd& pidfd, std::chrono::milliseconds patience);
/// Sends a signal. `not_found` if it is gone.
Result<void> send_signal(const Fd& pidfd, int signal);

// --- Starting one.

/// What exec(3) takes, for as long as the words are there.
std::vector<char*> pointers_to(const std::vector<std::string>& words);

struct Pipe {
  Fd reading;
  Fd writing;
};
/// Closed in children.
Result<Pipe> make_pipe();

}  // namespace berth
