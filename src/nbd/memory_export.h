// MemoryExport: a sparse disk in RAM, for tests and demonstrations. Knows what is allocated, and
// what has changed since mark().
//
// One loop; every call ends at once. Memory is allocated in blocks of 64 KiB as they are written.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "base/aligned_buffer.h"
#include "base/units.h"
#include "nbd/export.h"

namespace berth::nbd {

class MemoryExport final : public Export {
 public:
  static constexpr std::uint64_t block_size = 64 * KiB;

  struct Options {
    ExportInfo info;  // its contexts are set by this class
    std::string
        changed_context;  // the name of the context that shows what has changed; "" for none
    std::uint64_t allocated_bytes_max = 1 * GiB;  // no_space beyond
  };
  explicit MemoryExport(Options options);

  /// From now on, nothing has changed.
  void mark() { changed_.clear(); }
  std::uint64_t allocated_bytes() const { return blocks_.size() * block_size; }
  std::uint64_t flush_count() const { return flushes_; }  // also those that a FUA asked for

  const ExportInfo& info() const override { return info_; }
  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override;
  Task<Result<void>> write(std::uint64_t offset, Bytes from, bool force_unit_access) override;
  Task<Result<void>> flush() override;
  /// Gives whole blocks back, and leaves the rest of the range alone.
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length,
                             bool force_unit_access) override;
  /// Fast where no part of an allocated block has to be written.
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, ZeroOptions options) override;
  Task<Result<std::vector<StatusExtent>>> block_status(std::string context, std::uint64_t offset,
                                                       std::uint64_t length,
                                                       std::size_t extents_max) override;

 private:
  /// A range within one block.
  struct Piece {
    std::uint64_t block;
    std::uint64_t begin;  // bytes from the block's start
    std::uint64_t length;
    bool whole() const { return length == block_size; }
  };
  static Piece first_piece(std::uint64_t offset, std::uint64_t length);
  Result<std::byte*> allocate(std::uint64_t block);
  Result<void> zero_piece(const Piece& piece, bool keep_allocated);
  std::uint32_t status_of(bool changed, std::uint64_t block) const;

  ExportInfo info_;
  const std::string changed_context_;
  const std::uint64_t blocks_max_;
  std::unordered_map<std::uint64_t, AlignedBuffer> blocks_;
  std::set<std::uint64_t> changed_;
  std::uint64_t flushes_ = 0;
};

/// Exports by their names; the first one is also the default one ("").
class FixedExports final : public ExportDirectory {
 public:
  void add(std::shared_ptr<Export> served) { exports_.push_back(std::move(served)); }

  std::vector<ListedExport> list() override;
  Task<Result<std::shared_ptr<Export>>> find(std::string name) override;

 private:
  std::vector<std::shared_ptr<Export>> exports_;
};

}  // namespace berth::nbd
