// The file that a memory is saved to: pieces are written several at a time, and past the page cache
// where the file system can. A cache filled for an image is as large as the memory was, and finding
// its pages takes longer than the disk does, above all on hosts that are virtual machines
// themselves: what they have freed was handed back.
//
// Blocking; one call at a time, of any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace berth::memory {

class ImageOutput {
 public:
  static constexpr std::size_t buffer_size = std::size_t{256} << 10;

  /// Makes `path` (already_exists), a sparse file of `size` bytes, mode 0600.
  static Result<std::unique_ptr<ImageOutput>> create(const std::string& path, std::uint64_t size);
  /// Waits for what is being written.
  ~ImageOutput();

  /// A buffer of ours that nothing is being written from; waits until there is one. The same again
  /// until something has been written from it.
  Result<MutableBytes> buffer();
  /// Begins to write whole pages. They stay as they are, and nothing else is written to their
  /// place, until they are known to be written: by settle(), or because buffer() gives theirs. An
  /// error may be that of an earlier write; all later calls say the same.
  Result<void> write(std::uint64_t offset, Bytes pages);
  /// Waits until all has been written.
  Result<void> settle();
  /// And until it is on the disk. No time if nothing was written since the last one.
  Result<void> sync();

  const std::string& path() const;

 private:
  struct State;
  explicit ImageOutput(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace berth::memory
