#include "nbd/memory_export.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace berth::nbd {

MemoryExport::MemoryExport(Options options)
    : info_(std::move(options.info)),
      changed_context_(std::move(options.changed_context)),
      blocks_max_(options.allocated_bytes_max / block_size) {
  info_.contexts.clear();
  if (!changed_context_.empty()) info_.contexts.push_back(changed_context_);
}

MemoryExport::Piece MemoryExport::first_piece(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t begin = offset % block_size;
  return {
      .block = offset / block_size, .begin = begin, .length = std::min(length, block_size - begin)};
}

Result<std::byte*> MemoryExport::allocate(std::uint64_t block) {
  if (const auto found = blocks_.find(block); found != blocks_.end()) return found->second.data();
  if (blocks_.size() >= blocks_max_) {
    return failure(ErrorKind::no_space,
                   fmt::format("export '{}' may have {} of memory and has used it up", info_.name,
                               format_size(blocks_max_ * block_size)));
  }
  return blocks_.emplace(block, AlignedBuffer::zeroed(block_size)).first->second.data();
}

Task<Result<void>> MemoryExport::read(std::uint64_t offset, MutableBytes into) {
  while (!into.empty()) {
    const Piece piece = first_piece(offset, into.size());
    const auto found = blocks_.find(piece.block);
    if (found == blocks_.end()) {
      std::memset(into.data(), 0, piece.length);
    } else {
      std::memcpy(into.data(), found->second.data() + piece.begin, piece.length);
    }
    offset += piece.length;
    into = into.subspan(piece.length);
  }
  co_return Result<void>{};
}

Task<Result<void>> MemoryExport::write(std::uint64_t offset, Bytes from, bool force_unit_access) {
  while (!from.empty()) {
    const Piece piece = first_piece(offset, from.size());
    std::byte* block = CO_TRY(allocate(piece.block));
    changed_.insert(piece.block);
    std::memcpy(block + piece.begin, from.data(), piece.length);
    offset += piece.length;
    from = from.subspan(piece.length);
  }
  if (force_unit_access) ++flushes_;
  co_return Result<void>{};
}

Task<Result<void>> MemoryExport::flush() {
  ++flushes_;
  co_return Result<void>{};
}

Task<Result<void>> MemoryExport::discard(std::uint64_t offset, std::uint64_t length,
                                         bool force_unit_access) {
  while (length != 0) {
    const Piece piece = first_piece(offset, length);
    if (piece.whole() && blocks_.erase(piece.block) != 0) changed_.insert(piece.block);
    offset += piece.length;
    length -= piece.length;
  }
  if (force_unit_access) ++flushes_;
  co_return Result<void>{};
}

Result<void> MemoryExport::zero_piece(const Piece& piece, bool keep_allocated) {
  const auto found = blocks_.find(piece.block);
  if (found == blocks_.end()) {
    if (keep_allocated) TRY(allocate(piece.block));
    return {};
  }
  changed_.insert(piece.block);
  if (piece.whole() && !keep_allocated) {
    blocks_.erase(found);
  } else {
    std::memset(found->second.data() + piece.begin, 0, piece.length);
  }
  return {};
}

Task<Result<void>> MemoryExport::zero(std::uint64_t offset, std::uint64_t length,
                                      ZeroOptions options) {
  const auto is_slow = [&](const Piece& piece) {
    return options.keep_allocated || (!piece.whole() && blocks_.contains(piece.block));
  };
  // Two passes: what is refused as slow must not be half done.
  for (const bool act : {false, true}) {
    if (!act && !options.fast_only) continue;
    std::uint64_t at = offset;
    std::uint64_t left = length;
    while (left != 0) {
      const Piece piece = first_piece(at, left);
      if (act) {
        CO_TRY(zero_piece(piece, options.keep_allocated));
      } else if (is_slow(piece)) {
        co_return failure(ErrorKind::unsupported, "a part of a block would have to be written");
      }
      at += piece.length;
      left -= piece.length;
    }
  }
  if (options.force_unit_access) ++flushes_;
  co_return Result<void>{};
}

std::uint32_t MemoryExport::status_of(bool changed, std::uint64_t block) const {
  if (changed) return changed_.contains(block) ? 1 : 0;
  return blocks_.contains(block) ? 0 : status_hole | status_zero;
}

Task<Result<std::vector<StatusExtent>>> MemoryExport::block_status(std::string context,
                                                                   std::uint64_t offset,
                                                                   std::uint64_t length,
                                                                   std::size_t extents_max) {
  const bool changed = context != base_allocation;
  if (changed && context != changed_context_) {
    co_return failure(ErrorKind::not_found,
                      fmt::format("export '{}' has no context '{}'", info_.name, context));
  }
  std::vector<StatusExtent> extents;
  while (length != 0) {
    const Piece piece = first_piece(offset, length);
    const std::uint32_t flags = status_of(changed, piece.block);
    if (!extents.empty() && extents.back().flags == flags) {
      extents.back().length += piece.length;
    } else {
      if (extents.size() == extents_max) break;
      extents.push_back({.length = piece.length, .flags = flags});
    }
    offset += piece.length;
    length -= piece.length;
  }
  co_return extents;
}

std::vector<ListedExport> FixedExports::list() {
  std::vector<ListedExport> listed;
  for (const auto& served : exports_) {
    listed.push_back({.name = served->info().name, .description = served->info().description});
  }
  return listed;
}

Task<Result<std::shared_ptr<Export>>> FixedExports::find(std::string name) {
  for (const auto& served : exports_) {
    if (name.empty() || served->info().name == name) co_return served;
  }
  co_return failure(ErrorKind::not_found, fmt::format("there is no export '{}'", name));
}

}  // namespace berth::nbd
