// Which pages of a running QEMU's memory object have been written since the last look (DESIGN §6,
// rule 1): userfaultfd write protection (WP_ASYNC), registered inside QEMU by the preload, read and
// re-armed from outside with PAGEMAP_SCAN.
//
// Blocking, milliseconds to tens of them: call it on the pool. One at a time for a process. Seen
// are CPU stores of the process and what its system calls copy into the memory (recv, read: the
// faults are the kernel's own, and count). Not seen is who writes past the process's page tables:
// another mapping of the file, pwrite() to it, devices and O_DIRECT or registered buffers with
// pages pinned across a take(). Whoever does that adds its own ranges. Source: Linux,
// Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/result.h"

namespace berth::memory {

/// Of the memory object, bytes; multiples of the page size.
struct PageRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  friend bool operator==(const PageRange&, const PageRange&) = default;
};
std::uint64_t total_length(const std::vector<PageRange>& ranges);
/// The same pages in order, no two ranges of which touch.
std::vector<PageRange> merged(std::vector<PageRange> ranges);

class DirtyScan {
 public:
  /// Finds where the process has mapped the file, shared. `not_found` if there is no such file or
  /// process, or it has not mapped it; `unsupported` where the kernel lacks PAGEMAP_SCAN or the
  /// mapping is not registered (no preload); `precondition` if it maps parts of it, or some twice.
  /// The process is held by its memory, not by its number: a later process with the same one is
  /// never looked at.
  static Result<std::unique_ptr<DirtyScan>> attach(pid_t pid, const std::string& memory_file);
  ~DirtyScan();

  /// Everything written since the last call, in order and merged. The first call arms every page,
  /// and has nothing to tell: what was written before it is not known.
  ///
  /// What is not armed any more counts as written, whatever the reason (a hole punched, page tables
  /// taken away, mapped anew and registered again). `precondition` where tracking was lost: mapped
  /// anew without registration, or unmapped; then the whole memory is to be copied again, after a
  /// new attach. `disconnected` if the process has ended.
  Result<std::vector<PageRange>> take();
  /// What of a range has been written since the last take(), in order: a hint of what the next one
  /// will have, which arms nothing. Not whole where the memory was mapped anew.
  Result<std::vector<PageRange>> written_of(PageRange range);

 private:
  struct State;
  explicit DirtyScan(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace berth::memory
