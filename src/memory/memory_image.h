// A saved memory: one layer of an image (DESIGN §6). A sparse file; offset in it = guest offset;
// holes are zero. Written in rounds while the machine runs, read back into a memory object.
//
// Blocking: call it on the pool, one call at a time. `corrupt` if a file turns out shorter than it
// was.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/dirty_scan.h"

namespace berth::memory {

class MemoryImageWriter {
 public:
  /// Makes `path` (already_exists), a sparse file of the memory's size, mode 0600.
  static Result<std::unique_ptr<MemoryImageWriter>> create(const std::string& memory_file,
                                                           const std::string& path);
  /// An image that was not finished is removed.
  ~MemoryImageWriter();

  /// What of a range copy_all() need not copy, in order.
  using LeaveOut = std::function<Result<std::vector<PageRange>>(PageRange)>;
  /// Copies everything that is not zero (holes of the memory object are skipped without reading),
  /// but for longer ranges of what `leave_out` names: what has been written again already is copied
  /// later anyway. Returns what it left out. What is written in the meantime is copied or not: arm
  /// a DirtyScan before. `cancelled` soon after `stop` becomes true. `report`: bytes looked at so
  /// far. Both may be empty.
  Result<std::vector<PageRange>> copy_all(const std::atomic<bool>& stop,
                                          const std::function<void(std::uint64_t)>& report,
                                          const LeaveOut& leave_out);
  /// Copies these ranges as they are now: of the memory's pages, in order, `invalid_argument`
  /// otherwise. They are staged (see below) where that leaves room for `staging_reserved` bytes;
  /// what is not goes to the image. Where there is no room at all, all that was staged goes there
  /// first.
  Result<void> copy(const std::vector<PageRange>& ranges, std::uint64_t staging_reserved);
  /// Waits until what has been copied, and not staged, is on the disk: so that the disk has nothing
  /// to do for us while the machine stands still.
  Result<void> sync();
  /// Copies these ranges into memory of our own, as fast as it goes, since no disk is waited for:
  /// for the last round, while the machine stands still, and for those before it, whose pages are
  /// written again and again. A page is staged once, as it was last. `limit`, with nothing staged
  /// by that call, beyond `staging_max` bytes; `precondition` if staging was never prepared.
  Result<void> prepare_staging(std::uint64_t staging_max);
  Result<void> stage(const std::vector<PageRange>& ranges);
  /// Has the memory for so many bytes more at hand, as far as it goes. May run beside copy_all().
  Result<void> touch_staging(std::uint64_t bytes);
  /// Bytes of these ranges that are not staged yet.
  std::uint64_t unstaged(const std::vector<PageRange>& ranges) const;
  /// Bytes that can be staged now, whatever they are.
  std::uint64_t staging_left() const;
  /// Writes what was staged, and makes the image durable, its name too. The last call.
  Result<void> finish();
  std::uint64_t bytes_written() const;

 private:
  struct State;
  explicit MemoryImageWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Fills a memory object that is all zero with the image. `invalid_argument` if the sizes differ,
/// `precondition` if something is in it already, `no_space` if the memory directory is full.
Result<void> load_memory_image(const std::string& path, const std::string& memory_file);

/// First offset where the two differ, their size if they are alike: for tests and checks.
/// `invalid_argument` if the sizes differ.
Result<std::uint64_t> first_difference(const std::string& path, const std::string& memory_file);

/// Of what is in a memory object or an image, wherever its holes are: the checksum of the offsets
/// and checksums (64 bits each, little-endian) of all its pieces of 256 KiB that are not zero, in
/// order.
Result<std::uint64_t> memory_checksum(const std::string& path);

}  // namespace berth::memory
