// A guest whose memory is saved while it runs: the seam between MemorySave and who owns the guest,
// a machine or a container.
#pragma once

#include <string>
#include <vector>

#include <sys/types.h>

#include "async/event.h"
#include "async/task.h"
#include "base/result.h"
#include "machine/vm/qemu_monitor.h"

namespace berth::machine {

class SavedGuest : public QemuMonitor {
 public:
  /// `precondition` unless QEMU runs and answers.
  virtual Result<void> check_runs() = 0;
  /// Whether what it writes is seen.
  virtual bool tracks_memory() const = 0;
  virtual pid_t pid() const = 0;
  virtual std::string memory_file() const = 0;
  virtual std::uint64_t memory_size() const = 0;
  /// Data files that QEMU flushes when it stops.
  virtual std::vector<std::string> disk_files() const = 0;
  /// Under hold(): all of its memory is in memory_file(), wherever it was.
  virtual Task<Result<void>> bring_memory_back() { co_return Result<void>{}; }
  /// While it lives, nothing but its owner stops or continues the guest.
  virtual Task<AsyncMutex::Guard> hold() = 0;
  /// Its virtual CPUs stand, and are to stay so.
  virtual bool is_suspended() const = 0;
  /// What is left to the guest of its CPU time, of a hundred; 100 gives it back what it may have.
  virtual Result<void> slow(unsigned percent) = 0;
  /// How long its virtual CPUs stood when they stood last.
  virtual Duration stood() const = 0;
  /// The instant before they stand, after what could be copied was: for what is to be at rest.
  virtual Task<Result<void>> rest() { co_return Result<void>{}; }
  /// They run again, whatever came of it; after rest() alone.
  virtual Task<> wake() { co_return; }
};

}  // namespace berth::machine
