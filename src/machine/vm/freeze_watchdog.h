// Thaws a guest whose file systems we have frozen, whatever becomes of us: a process of its own, in
// a session of its own, that has nothing of ours but the reading end of a pipe and standard error.
//
// Start it before the freeze. It thaws the guest when the limit is over, or at once when the keeper
// dies. Who may say that the guest was thawed is decided by a single byte in the pipe: the watchdog
// takes it before it begins to thaw, dismiss() takes it back, and the kernel gives it to one of
// them.
//
// The agent's socket serves one client at a time. The connection of a dead keeper is gone. That of
// a live one goes when its call times out, or the hold of a freeze (guest_agent.h) is over: give
// calls time-outs below the limit, else a freeze may still come after the watchdog's thaw. A keeper
// that hangs while it is connected keeps the watchdog waiting until it ends; who takes over from it
// asks whether the guest is frozen.
#pragma once

#include <string>

#include <sys/types.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/result.h"

namespace berth::machine {

constexpr Duration watchdog_thaw_max = std::chrono::seconds(60);

class FreezeWatchdog {
 public:
  /// Starts `program watchdog --agent-socket … --fd … --limit-ms …`; from a process with one thread
  /// or many. Blocking, and short.
  static Result<FreezeWatchdog> start(const std::string& program, const std::string& agent_socket,
                                      Duration limit);
  FreezeWatchdog(FreezeWatchdog&&) noexcept = default;
  FreezeWatchdog& operator=(FreezeWatchdog&& other) noexcept;
  /// Without dismiss(), it thaws the guest now. Waits for the process that was started, which ends
  /// very soon in any case, but does not thaw; with start(), a matter for offload() where a loop
  /// has other work.
  ~FreezeWatchdog();

  /// We have thawed the guest ourselves (or never froze it). True: the watchdog has not begun to
  /// thaw, and never will. False: it has, earlier than we think maybe, and what was made in between
  /// is not what it claims to be. Does not wait; the same answer when called again.
  bool dismiss();

  pid_t pid() const { return pid_; }

 private:
  FreezeWatchdog(Fd turn, Fd alive) : turn_(std::move(turn)), alive_(std::move(alive)) {}
  Result<void> spawn(const std::string& program, const std::string& agent_socket, Duration limit);
  void end();

  Fd turn_;   // the pipe's reading end: a byte in it, and the right to say who has thawed
  Fd alive_;  // the pipe's writing end
  Fd pidfd_;
  pid_t pid_ = -1;
  bool in_time_ = false;
};

/// The watchdog's own program: `fd` is its end of the pipe. It tries until the guest's agent says
/// that nothing is frozen, or QEMU is gone (exit code 0), or watchdog_thaw_max is over (1). The
/// process that was started ends when it is decided whether to thaw; a child of it does that.
int run_freeze_watchdog(const std::string& agent_socket, int fd, Duration limit);

}  // namespace berth::machine
