// Write-zeroes, discard, allocation, and the background copy of a backing.
#include <algorithm>
#include <cstring>

#include "disk/engine.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

// Large requests go in pieces of this many bytes, so that none holds many intents or locks (rule
// 10).
constexpr std::uint64_t piece_size = 32 * MiB;

}  // namespace

Task<Result<void>> Engine::zero(std::uint64_t offset, std::uint64_t length, bool fast_only) {
  if (exclusive_) co_await admitted();
  CO_TRY(check_range(offset, length));
  const Request request(*this);
  co_return co_await zero_range(offset, length, fast_only);
}

Task<Result<void>> Engine::zero_range(std::uint64_t offset, std::uint64_t length, bool fast_only) {
  while (length > 0) {
    const BlockIndex block = block_of(offset);
    if (offset == block_offset(block) && length >= block_length(block)) {
      // Whole blocks: a state each.
      const std::uint64_t piece = std::min(length, piece_size);
      BlockIndex end = block_of(offset + piece);
      if (offset + piece == size()) end = block_count();
      const std::uint64_t done = std::min(block_offset(end), size()) - offset;
      CO_TRY(co_await zero_blocks(block, end - 1, fast_only));
      offset += done;
      length -= done;
      continue;
    }
    const std::uint64_t part = std::min(length, block_offset(block + 1) - offset);
    if (state_of(live_->word(block)) != BlockState::zero) {
      if (fast_only)
        co_return failure(ErrorKind::unsupported,
                          "part of a block cannot be zeroed without writing");
      const AlignedBuffer zeros = AlignedBuffer::zeroed(part);
      CO_TRY(co_await write_live(offset, zeros.bytes()));
    }
    offset += part;
    length -= part;
  }
  co_return Result<void>{};
}

Task<Result<void>> Engine::zero_blocks(BlockIndex first, BlockIndex last, bool fast_only) {
  const bool done = CO_TRY(co_await zero_run(first, last));
  if (done) co_return Result<void>{};
  for (BlockIndex block = first; block <= last; ++block)
    CO_TRY(co_await zero_block(block, fast_only));
  co_return Result<void>{};
}

/// All of the blocks in one go, where none needs a hold and none is busy. False: they go one by
/// one.
Task<Result<bool>> Engine::zero_run(BlockIndex first, BlockIndex last) {
  for (;;) {
    co_await pass_gate();
    const Epoch epoch = live_->epoch();
    bool hot = true;
    for (BlockIndex block = first; block <= last; ++block) {
      if (needs_hold(block, live_->word(block))) co_return false;
      hot = hot && intents_.is_hot(region_of(block), epoch);
    }
    if (hot) break;
    CO_TRY(co_await intents_.announce(region_of(first), region_of(last), epoch));
  }
  if (!locks_.try_exclusive(first, last)) co_return false;
  const auto guard = locks_.adopt_exclusive(first, last);
  co_await punch(first, last);
  co_return true;
}

Task<Result<void>> Engine::zero_block(BlockIndex block, bool fast_only) {
  for (;;) {
    co_await pass_gate();
    const MapWord word = live_->word(block);
    const Epoch epoch = live_->epoch();
    if (state_of(word) == BlockState::zero)
      co_return Result<void>{};  // its content does not change
    if (needs_hold(block, word)) {
      if (fast_only)
        co_return failure(ErrorKind::unsupported, "a checkpoint needs the block's content first");
      CO_TRY(co_await hold_block(block));
    } else if (!intents_.is_hot(region_of(block), epoch)) {
      CO_TRY(co_await intents_.announce(region_of(block), region_of(block), epoch));
    } else if (!locks_.try_exclusive(block, block)) {
      co_await locks_.wait();
    } else {
      break;
    }
  }
  const auto guard = locks_.adopt_exclusive(block, block);
  co_await punch(block, block);
  co_return Result<void>{};
}

/// Makes blocks read zeros: one store each decides. Giving their space back is a kindness, and may
/// fail. The caller holds their locks and has checked everything else, this instant.
Task<> Engine::punch(BlockIndex first, BlockIndex last) {
  BlockState zeroed = BlockState::zero;
  if (has_backing_ && sabotaged(Sabotage::zero_becomes_absent)) zeroed = BlockState::absent;
  for (std::uint64_t region = region_of(first); region <= region_of(last); ++region)
    intents_.enter(region);
  for (BlockIndex block = first; block <= last; ++block) {
    if (state_of(live_->word(block)) != BlockState::zero) live_->set_word(block, current(zeroed));
  }
  begin_mutation();
  const std::uint64_t start = block_offset(first);
  const std::uint64_t length = block_offset(last) + block_length(last) - start;
  if (is_aligned(start, length)) (void)co_await data_->punch(start, length);
  end_mutation();
  for (std::uint64_t region = region_of(first); region <= region_of(last); ++region)
    intents_.leave(region);
}

// --- Discard.

Task<Result<void>> Engine::discard(std::uint64_t offset, std::uint64_t length) {
  if (exclusive_) co_await admitted();
  CO_TRY(check_range(offset, length));
  const Request request(*this);
  // Parts of blocks at the ends are left as they are.
  const std::uint64_t end = offset + length;
  BlockIndex block = divide_up(offset, block_size_);
  const BlockIndex stop = end == size() ? block_count() : block_of(end);
  while (block < stop) {
    const BlockIndex last = std::min(stop, block + piece_size / block_size_) - 1;
    CO_TRY(co_await discard_blocks(block, last));
    block = last + 1;
  }
  co_return Result<void>{};
}

Task<Result<void>> Engine::discard_blocks(BlockIndex first, BlockIndex last) {
  const bool done = CO_TRY(co_await zero_run(first, last));
  if (done) co_return Result<void>{};
  for (BlockIndex block = first; block <= last; ++block) {
    // What a checkpoint needs stays where it is: holding it would cost more space than is given
    // back.
    if (needs_hold(block, live_->word(block))) continue;
    CO_TRY(co_await zero_block(block, false));
  }
  co_return Result<void>{};
}

// --- Allocation.

Task<Result<std::vector<AllocationExtent>>> Engine::allocation(std::uint64_t offset,
                                                               std::uint64_t length,
                                                               std::size_t extents_max) {
  CO_TRY(check_range(offset, length));
  std::vector<AllocationExtent> extents;
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const BlockState state = state_of(live_->word(block_of(offset)));
    BlockIndex block = block_of(offset) + 1;
    while (block_offset(block) < end && state_of(live_->word(block)) == state) ++block;
    std::uint64_t run_end = std::min(end, block_offset(block));
    AllocationExtent extent{
        .length = 0, .hole = state == BlockState::zero, .zero = state == BlockState::zero};
    if (state == BlockState::present) {
      // Within what is the data file's, its own holes count: a fresh volume is all present and all
      // hole.
      const std::uint64_t data = CO_TRY(data_->next_data(offset));
      extent.hole = extent.zero = data > offset;
      const std::uint64_t boundary = extent.hole ? data : CO_TRY(data_->next_hole(offset));
      run_end = std::min(run_end, boundary);
    }
    extent.length = run_end - offset;
    if (!extents.empty() && extents.back().hole == extent.hole &&
        extents.back().zero == extent.zero) {
      extents.back().length += extent.length;
    } else {
      if (extents.size() == extents_max) break;
      extents.push_back(extent);
    }
    offset = run_end;
  }
  co_return extents;
}

// --- Populate.

Task<Result<std::uint64_t>> Engine::populate(std::uint64_t bytes_max) {
  if (!has_backing_) co_return std::uint64_t{0};
  if (exclusive_) co_await admitted();
  const Request request(*this);
  std::uint64_t copied = 0;
  std::uint64_t scanned = 0;
  // Once around: what lies before the cursor may have been missed by a failed call.
  for (; scanned < block_count() && copied < bytes_max; ++scanned) {
    if (populate_cursor_ >= block_count()) populate_cursor_ = 0;
    const BlockIndex block = populate_cursor_;
    if (live_->word(block).state() == BlockState::absent) {
      CO_TRY(co_await fill_block(block));
      copied += block_length(block);
    } else if (scanned % 65536 == 0) {
      co_await loop_.yield();
    }
    ++populate_cursor_;
  }
  co_return copied;
}

}  // namespace berth::disk
