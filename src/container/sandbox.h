// What the processes of one container run in: a microVM (microvm.h), or the host's own kernel
// (process_sandbox.h). Either way an agent is their PID 1, and all that is asked of them goes
// through its socket (agent_link.h); what is in there is not its matter (container.h).
//
// On one loop. It outlives this object: close() lets go of it, and adopt() finds it again in
// another process. One that has ended never starts again by itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "async/task.h"
#include "base/ids.h"
#include "base/result.h"
#include "machine/vm/control_group.h"
#include "machine/vm/qemu_command.h"

namespace berth::container {

class Sandbox {
 public:
  /// What it goes on from, in place of booting.
  struct Restore {
    std::string memory;   // the template's memory object, which is sealed; "": its memory is zero
    std::string devices;  // a file with the state of its devices
    // Of one that was hibernated:
    std::string pages = {};        // a page file, mapped over that
    std::string qemu = {};         // the version that saved it
    std::string accelerator = {};  // likewise
    bool stands = false;           // it is not set going
  };
  struct Start {
    std::string image;  // paths
    std::string kernel;
    std::string unpacked_kernel = {};  // the same (unpack_kernel()); "" for none
    std::string initrd;
    std::string agent;                              // in the host's kernel, in place of those above
    std::vector<machine::AttachedDisk> disks = {};  // the overlay first
    std::optional<Restore> restore = std::nullopt;
  };

  virtual ~Sandbox() = default;

  /// Returns when its agent is about to run. Nothing is left behind if it does not. `run` is kept
  /// by the caller, for adopt().
  virtual Task<Result<void>> start(Start start, Id128 run) = 0;
  /// Finds that of an earlier keeper; false if there is none, or it had not all that it needs to
  /// run, and what it has left is gone. `run` as for start(); of a clone, `template_memory`, and
  /// whether it `may_stand`: one that has never run so far is set going.
  virtual Task<Result<bool>> adopt(Id128 run, std::string template_memory, bool may_stand) = 0;

  virtual bool is_on() const = 0;
  virtual pid_t pid() const = 0;
  virtual std::string agent_socket() const = 0;
  /// Files that it appends to.
  virtual std::vector<std::string> logs() const = 0;
  virtual machine::ControlGroupUsage usage() const = 0;

  /// By force. Returns when it has ended.
  virtual Task<> end() = 0;
  /// Until it has ended; its last words, "" where it has none.
  virtual Task<std::string> ended() = 0;
  virtual const std::string& last_words() const = 0;

  /// Nothing in it runs, and goes on.
  virtual Task<Result<void>> freeze() = 0;
  virtual Task<Result<void>> thaw() = 0;
  virtual bool is_frozen() const = 0;

  /// Lets go of it; it runs on.
  virtual Task<> close() = 0;
};

}  // namespace berth::container
