// A page file: the private memory of a parked machine (docs/formats/page-file.md). A sparse file;
// offset in it = guest offset. It holds whole granules: all pages of a granule that are not zero,
// and holes for those that are. Behind the memory stands which granules it holds.
//
// While a machine has it mapped it is never truncated, nor written below the memory's size.
// Blocking; any thread, one call at a time for a file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/result.h"
#include "memory/dirty_scan.h"

namespace berth::memory {

/// Of a machine's RAM, however often it was parked: a process may have 65,530 in all
/// (vm.max_map_count), and QEMU has some hundreds of its own.
constexpr std::uint64_t memory_mappings_max = 16384;
/// Bytes, a power of two: 64 KiB up to 1 GiB of memory, then so much that no more granules than
/// mappings are possible.
std::uint64_t granule_size(std::uint64_t memory_size);

/// A set of granules.
class GranuleSet {
 public:
  explicit GranuleSet(std::uint64_t memory_size);
  /// Those that have any byte of the range.
  void add(PageRange range);
  /// Of the same memory.
  void add(const GranuleSet& others);
  bool has(std::uint64_t granule) const;
  std::uint64_t count() const;
  bool includes(const GranuleSet& other) const;
  void keep_only(const GranuleSet& others);
  /// In order; no two touch. The last one may end with the memory.
  std::vector<PageRange> ranges() const;
  std::uint64_t granule() const { return granule_; }
  std::uint64_t granules() const { return divide(memory_size_); }
  bool operator==(const GranuleSet&) const = default;

  /// As the format has it: bit i mod 8 of byte i / 8 is granule i.
  static constexpr std::size_t encoded_size = memory_mappings_max / 8;
  void encode(MutableBytes into) const;
  /// False if there are bits of granules that the memory has not.
  bool decode(Bytes from);

 private:
  std::uint64_t divide(std::uint64_t length) const { return (length + granule_ - 1) / granule_; }

  std::uint64_t memory_size_;
  std::uint64_t granule_;
  std::vector<bool> granules_;
};

class PageFile {
 public:
  /// What stands behind the memory.
  static constexpr std::uint64_t trailer_size = 8192;
  static Bytes encode_trailer(MutableBytes into, std::uint64_t memory_size, const GranuleSet& held);

  /// `corrupt` where it is no whole page file; `unsupported` for another version.
  static Result<PageFile> open(const std::string& path);

  std::uint64_t memory_size() const { return memory_size_; }
  const GranuleSet& held() const { return held_; }
  const GranuleSet& working_set() const { return working_set_; }
  /// For MemoryChannel::map(): nothing can be written through it.
  const Fd& fd() const { return fd_; }

  /// Writes down which granules the machine needs first, for prefetch(); those it holds, of these.
  Result<void> set_working_set(const GranuleSet& granules);
  /// Has the kernel read the granules that are needed first, in order, and does not wait; how many
  /// bytes. None where it is not known.
  Result<std::uint64_t> prefetch();
  /// What of it is in the page cache goes, as far as nobody has it mapped.
  void drop_cache();

 private:
  PageFile(std::string path, Fd fd, std::uint64_t memory_size);
  Result<void> read_trailer();

  std::string path_;
  Fd fd_;
  std::uint64_t memory_size_;
  GranuleSet held_;
  GranuleSet working_set_;
};

}  // namespace berth::memory
