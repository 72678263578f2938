// A file that holds memory, a memory object or an image: opened and checked, read and written
// whole.
//
// Read with pread(), never mapped: whoever else has the file may shorten it at any time, which is
// an error here and would be SIGBUS there; and looking at a hole of a tmpfs through a mapping fills
// it. Blocking; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/result.h"

namespace berth::memory {

constexpr std::uint64_t page_size = 4096;

struct MemoryFile {
  std::string path;
  Fd fd;
  std::uint64_t size = 0;

  enum class Access : std::uint8_t { read, write };
  /// not_found; invalid_argument for what is no regular file or holds no whole number of pages.
  static Result<MemoryFile> open(const std::string& path, Access access);

  /// `corrupt` if the file ends before.
  Result<void> read(std::uint64_t offset, MutableBytes into) const;
  Result<void> write(std::uint64_t offset, Bytes from) const;

  /// `corrupt` if the file has not the size any more that it had: what is cut off looks like a
  /// hole.
  Result<void> check_size() const;

  struct Extent {
    std::uint64_t start = 0;
    std::uint64_t end = 0;
  };
  /// The first extent at or after `offset` that may hold anything but zeros, of whole pages; empty,
  /// at the end of the file, if there is none.
  Result<Extent> next_data(std::uint64_t offset) const;
};

}  // namespace berth::memory
