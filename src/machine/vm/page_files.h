// The memory of a guest that is paused, a machine's or a container's: where it goes, and how it
// comes back. Page files lie in the guest's own directory:
//
//   DIRECTORY/pages-N   the memory that was private when it was parked the N-th time
//
// As many of them stay as the QEMU has anything mapped from (docs/formats/page-file.md).
//
// Blocking, as long as disk and swap take: on a worker thread, one call at a time. The machine
// stands still, and nothing is sent to its devices, but where it says otherwise. Calls are by the
// QEMU's process: where it has no memory channel, or has ended, `disconnected` or `not_found`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "memory/memory_use.h"

namespace berth::memory {
class PageFile;
}

namespace berth::machine {

class PageFiles {
 public:
  /// `directory`: of the guest.
  explicit PageFiles(std::string directory) : directory_(std::move(directory)) {}

  struct Report {
    memory::MemoryUse before;
    memory::MemoryUse after;
  };
  /// Private memory is swapped out, with QEMU's own. `precondition` on a host without swap.
  Result<Report> trim(const memory::GuestProcess& process) const;
  /// Private memory goes to one more page file, and QEMU's own is swapped out where there is swap.
  /// Where it fails the machine can go on as it was (memory::park()); `no_space` on a full disk.
  /// What the machine will need first, as far as that is known, stays in the host's page cache.
  Result<Report> park(const memory::GuestProcess& process) const;

  /// All that is private is in one page file, of this name, which another QEMU can go on from.
  std::string path_of(const std::string& name) const;
  struct Saved {
    std::string name;
    memory::MemoryUse before;
  };
  Result<Saved> save(const memory::GuestProcess& process) const;
  /// Of a QEMU that has ended, and all of whose memory is saved there: the others go, and what is
  /// saved takes no memory.
  void leave_only(const std::string& name) const;

  /// Has the kernel read what the machine will need first. Does not wait for the disk. The machine
  /// may run, and other calls may go on beside it: a file that is gone by then is logged.
  void read_ahead() const;
  /// Notes what that is. The machine runs, and has for a while. What QEMU has come to of its own
  /// memory, for memory::swap_in() next time.
  std::vector<memory::PageRegion> note_working_set(const memory::GuestProcess& process) const;
  /// read_ahead(), and that, when a machine that is trimmed or parked goes on.
  void bring_forward(pid_t qemu, const std::vector<memory::PageRegion>& own) const;
  /// A machine with memory of its own is as if it had never been parked. Nothing to do for one that
  /// was not.
  Result<void> bring_back(const memory::GuestProcess& process) const;
  /// A piece of that, no more than a machine may stand for; whether all is there. Page files stay.
  Result<bool> bring_piece_back(const memory::GuestProcess& process) const;
  /// Reads that piece from the disk, so that the other takes less long. The machine may run.
  Result<void> prepare_piece(const memory::GuestProcess& process) const;

  /// Those of which nothing is mapped go. The machine may run.
  void remove_unused(const memory::GuestProcess& process) const;
  /// Of a QEMU that has ended.
  void remove_all() const;
  bool any() const { return !paths().empty(); }
  /// What they take on the disk, bytes; or one of them.
  std::uint64_t disk_bytes() const;
  std::uint64_t disk_bytes(const std::string& name) const;

 private:
  /// The oldest first.
  std::vector<std::string> paths() const;
  std::string next_path() const;
  /// Those of paths() that can be read; of the others it is logged why not.
  std::vector<memory::PageFile> open_all() const;
  static void read_ahead(std::vector<memory::PageFile> files);
  /// What is known of it from all page files there are; the newest has none of its own yet.
  void inherit_working_set(const std::string& newest) const;
  static void note_in(const std::vector<std::string>& paths, const memory::GuestProcess& process);
  /// What the machine will need first, while the host has room for it.
  void keep_first_in_cache() const;
  void remove_all_but(const std::string& name) const;
  static void log_failure(const Error& error);

  std::string directory_;
};

}  // namespace berth::machine
