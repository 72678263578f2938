// Reads and writes of the live disk.
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "disk/engine.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

constexpr std::size_t pieces_at_once = 16;  // blocks of one request in the slow path side by side

}  // namespace

Result<void> Engine::check_range(std::uint64_t offset, std::uint64_t length) const {
  if (unfinished_) [[unlikely]]
    return failure(Error(*unfinished_));
  if (offset <= size() && length <= size() - offset) return {};
  return failure(ErrorKind::invalid_argument,
                 fmt::format("{} bytes at offset {} are not within the volume's {} bytes", length,
                             offset, size()));
}

Task<> Engine::admitted() {
  while (exclusive_) co_await exclusive_ended_.wait();
}

Task<> Engine::pass_gate() {
  while (gate_closed_) co_await gate_opened_.wait();
}

// --- Reads.

Task<Result<void>> Engine::read(std::uint64_t offset, MutableBytes into) {
  if (exclusive_) [[unlikely]]
    co_await admitted();
  CO_TRY(check_range(offset, into.size()));
  const Request request(*this);
  co_return co_await read_live(offset, into);
}

Task<Result<void>> Engine::read_live(std::uint64_t offset, MutableBytes into) {
  while (!into.empty()) {
    // A run of blocks in the same state is one read.
    const BlockState state = state_of(live_->word(block_of(offset)));
    const std::uint64_t end = offset + into.size();
    BlockIndex block = block_of(offset) + 1;
    while (block_offset(block) < end && state_of(live_->word(block)) == state) ++block;
    const std::uint64_t length = std::min(end, block_offset(block)) - offset;
    const MutableBytes part = into.first(length);
    switch (state) {
      case BlockState::present: CO_TRY(co_await read_data(offset, part)); break;
      case BlockState::zero: std::memset(part.data(), 0, part.size()); break;
      case BlockState::absent: CO_TRY(co_await read_backing(offset, part)); break;
      default:  // two bits of shared memory hold four values
        co_return failure(ErrorKind::corrupt,
                          fmt::format("the block map has a state that does not exist for block {}",
                                      block_of(offset)));
    }
    offset += length;
    into = into.subspan(length);
  }
  co_return Result<void>{};
}

Task<Result<void>> Engine::read_data(std::uint64_t offset, MutableBytes into) {
  if (is_aligned(offset, into.size()) && is_aligned(into.data())) {
    const std::size_t got = CO_TRY(co_await data_->read(offset, into));
    if (got == into.size()) [[likely]]
      co_return Result<void>{};
    co_return failure(ErrorKind::corrupt,
                      fmt::format("the data file ends at {}, within the volume", offset + got));
  }
  const std::uint64_t start = round_down(offset, alignment_);
  const std::uint64_t end = round_up(offset + into.size(), alignment_);
  AlignedBuffer buffer(end - start);
  const std::size_t got = CO_TRY(co_await data_->read(start, buffer.bytes()));
  if (start + got < offset + into.size()) {
    co_return failure(ErrorKind::corrupt,
                      fmt::format("the data file ends at {}, within the volume", start + got));
  }
  std::memcpy(into.data(), buffer.data() + (offset - start), into.size());
  co_return Result<void>{};
}

Task<Result<void>> Engine::read_backing(std::uint64_t offset, MutableBytes into) {
  const std::uint64_t available = offset < backing_size_ ? backing_size_ - offset : 0;
  const std::size_t length = std::min<std::uint64_t>(into.size(), available);
  if (length > 0) {
    // A backing may want whole sectors: read them, and take what was asked for.
    const std::uint64_t start = round_down(offset, sector_size);
    AlignedBuffer buffer(round_up(offset + length, sector_size) - start);
    const std::size_t got = CO_TRY(co_await backing_->read(start, buffer.bytes()));
    if (start + got < offset + length) {
      co_return failure(ErrorKind::corrupt,
                        fmt::format("the backing '{}' has become shorter", backing_->name()));
    }
    std::memcpy(into.data(), buffer.data() + (offset - start), length);
  }
  std::memset(into.data() + length, 0, into.size() - length);
  co_return Result<void>{};
}

// --- Writes.

bool Engine::all_current(BlockIndex first, BlockIndex last) const {
  const MapWord wanted = current(BlockState::present);
  for (BlockIndex block = first; block <= last; ++block) {
    if (live_->word(block) != wanted) return false;
  }
  return true;
}

Task<Result<void>> Engine::write(std::uint64_t offset, Bytes from) {
  if (exclusive_) [[unlikely]]
    co_await admitted();
  CO_TRY(check_range(offset, from.size()));
  const Request request(*this);
  if (from.empty()) co_return Result<void>{};
  co_return co_await write_live(offset, from);
}

Task<Result<void>> Engine::write_live(std::uint64_t offset, Bytes from) {
  if (!is_aligned(offset, from.size()) || !is_aligned(from.data())) [[unlikely]] {
    co_return co_await write_part_of_sector(offset, from);
  }
  // The fast path: the content's epoch is this one already, so nobody needs the old bytes.
  const BlockIndex first = block_of(offset);
  const BlockIndex last = block_of(offset + from.size() - 1);
  if (!gate_closed_ && all_current(first, last) && locks_.try_shared(first, last)) [[likely]] {
    const auto guard = locks_.adopt_shared(first, last);
    begin_mutation();
    auto written = co_await data_->write(offset, from);
    end_mutation();
    co_return written;
  }
  co_return co_await write_slow(offset, from);
}

/// The slow path, once per block and epoch: first for the whole request at once, which does for
/// blocks that are present and need no hold; else block by block.
Task<Result<void>> Engine::write_slow(std::uint64_t offset, Bytes from) {
  const bool done = CO_TRY(co_await write_run(offset, from));
  if (done) co_return Result<void>{};
  std::vector<Task<Result<void>>> pieces;
  while (!from.empty()) {
    const BlockIndex block = block_of(offset);
    const std::size_t length =
        std::min<std::uint64_t>(from.size(), block_offset(block + 1) - offset);
    pieces.push_back(write_block(block, offset, from.first(length)));
    offset += length;
    from = from.subspan(length);
  }
  if (pieces.size() == 1) co_return co_await pieces.front();
  co_return co_await run_all(std::move(pieces));
}

/// Everything that is checked here holds until the write has been submitted: nothing is awaited
/// between. False: some block needs more than its epoch set.
Task<Result<bool>> Engine::write_run(std::uint64_t offset, Bytes from) {
  const BlockIndex first = block_of(offset);
  const BlockIndex last = block_of(offset + from.size() - 1);
  for (;;) {
    co_await pass_gate();
    const Epoch epoch = live_->epoch();
    bool hot = true;
    for (BlockIndex block = first; block <= last; ++block) {
      const MapWord word = live_->word(block);
      if (state_of(word) != BlockState::present || needs_hold(block, word)) co_return false;
      if (word.epoch() != epoch) hot = hot && intents_.is_hot(region_of(block), epoch);
    }
    if (!hot && !sabotaged(Sabotage::data_before_intent)) {
      CO_TRY(co_await intents_.announce(region_of(first), region_of(last), epoch));
      continue;
    }
    if (locks_.try_shared(first, last)) break;
    co_await locks_.wait();
  }
  const auto guard = locks_.adopt_shared(first, last);
  const std::uint64_t first_region = region_of(first);
  const std::uint64_t last_region = region_of(last);
  for (std::uint64_t region = first_region; region <= last_region; ++region) intents_.enter(region);
  for (BlockIndex block = first; block <= last; ++block)
    live_->set_word(block, current(BlockState::present));
  begin_mutation();
  auto written = co_await data_->write(offset, from);
  end_mutation();
  for (std::uint64_t region = first_region; region <= last_region; ++region) intents_.leave(region);
  if (!written) co_return failure(std::move(written).error());
  co_return true;
}

/// A write within one block, whatever it needs. Each step leaves a lasting mark (an intent, a hold,
/// a state) and everything is looked at again after it.
Task<Result<void>> Engine::write_block(BlockIndex block, std::uint64_t offset, Bytes from) {
  for (;;) {
    co_await pass_gate();
    const MapWord word = live_->word(block);
    if (needs_hold(block, word)) {
      CO_TRY(co_await hold_block(block));
      continue;
    }
    if (state_of(word) == BlockState::present) {
      const bool done = CO_TRY(co_await write_run(offset, from));
      if (done) co_return Result<void>{};
      continue;
    }
    if (from.size() < block_length(block)) {
      CO_TRY(co_await fill_block(block));
      continue;
    }
    const Epoch epoch = live_->epoch();
    const std::uint64_t region = region_of(block);
    if (!intents_.is_hot(region, epoch)) {
      CO_TRY(co_await intents_.announce(region, region, epoch));
      continue;
    }
    if (!locks_.try_exclusive(block, block)) {
      co_await locks_.wait();
      continue;
    }
    co_return co_await write_new_block(block, from);
  }
}

/// The first whole write of a block that is not present: it becomes so when the bytes are there
/// (rule 4). The caller has taken the block's lock and checked everything else, this instant.
Task<Result<void>> Engine::write_new_block(BlockIndex block, Bytes from) {
  const auto guard = locks_.adopt_exclusive(block, block);
  const std::uint64_t region = region_of(block);
  intents_.enter(region);
  begin_mutation();
  auto written = co_await data_->write(block_offset(block), from);
  // The epoch cannot have advanced: the cut drains us first.
  if (written) live_->set_word(block, current(BlockState::present));
  end_mutation();
  intents_.leave(region);
  co_return written;
}

/// A write that does not keep to the data file's sectors, or whose memory does not: the sectors at
/// its ends are read, changed and written under the blocks' exclusive locks.
Task<Result<void>> Engine::write_part_of_sector(std::uint64_t offset, Bytes from) {
  while (!from.empty()) {
    const BlockIndex block = block_of(offset);
    const std::size_t length =
        std::min<std::uint64_t>(from.size(), block_offset(block + 1) - offset);
    const std::uint64_t start = round_down(offset, alignment_);
    const std::uint64_t end = round_up(offset + length, alignment_);
    AlignedBuffer buffer(end - start);
    if (start == offset && end == offset + length) {
      std::memcpy(buffer.data(), from.data(), length);
      CO_TRY(co_await write_live(offset, buffer.bytes()));
    } else {
      for (;;) {
        co_await pass_gate();
        const MapWord word = live_->word(block);
        const Epoch epoch = live_->epoch();
        if (needs_hold(block, word)) {
          CO_TRY(co_await hold_block(block));
        } else if (state_of(word) != BlockState::present) {
          CO_TRY(co_await fill_block(block));
        } else if (word.epoch() != epoch && !intents_.is_hot(region_of(block), epoch)) {
          CO_TRY(co_await intents_.announce(region_of(block), region_of(block), epoch));
        } else if (!locks_.try_exclusive(block, block)) {
          co_await locks_.wait();
        } else {
          break;
        }
      }
      const auto guard = locks_.adopt_exclusive(block, block);
      const std::uint64_t region = region_of(block);
      intents_.enter(region);
      begin_mutation();
      live_->set_word(block, current(BlockState::present));
      auto done = co_await read_data(start, buffer.bytes());
      if (done) {
        std::memcpy(buffer.data() + (offset - start), from.data(), length);
        done = co_await data_->write(start, buffer.bytes());
      }
      end_mutation();
      intents_.leave(region);
      CO_TRY(std::move(done));
    }
    offset += length;
    from = from.subspan(length);
  }
  co_return Result<void>{};
}

/// Whether a checkpoint needs the block's present content and does not have it. The index alone
/// answers (rule 2): epochs that a recovery gave say nothing about it.
bool Engine::needs_hold(BlockIndex block, MapWord word) const {
  if (newest_checkpoint_ == 0 || word.epoch() == live_->epoch()) return false;
  return find_held(newest_checkpoint_, block, nullptr).kind == HeldKind::none;
}

/// Makes the block's content safe in the newest layer. Returns when nobody needs to hold it any
/// more, or with an error.
Task<Result<void>> Engine::hold_block(BlockIndex block) {
  const auto guard = co_await locks_.exclusive(block);
  const MapWord word = live_->word(block);
  if (!needs_hold(block, word)) co_return Result<void>{};
  const std::shared_ptr<HoldLayer> layer = layers_.back();
  AlignedBuffer frame(layer->frame_size());
  HeldKind kind = HeldKind::backing;
  if (const BlockState state = state_of(word); state == BlockState::zero) {
    kind = HeldKind::zero;
  } else if (state == BlockState::present) {
    const MutableBytes content = frame.bytes().subspan(sector_size);
    const std::uint64_t length = block_length(block);
    CO_TRY(co_await read_data(block_offset(block), content.first(length)));
    std::memset(content.data() + length, 0, content.size() - length);
    kind = is_zero(content) ? HeldKind::zero : HeldKind::data;
  }
  auto held = co_await layer->append(block, word, kind, frame, layer_must_be_durable(*layer));
  if (!held && held.error().kind() == ErrorKind::no_space) {
    // Rule 7: volatile holds go before a guest's write fails. Another block may have seen to that.
    const auto one_at_a_time = co_await giving_up_.lock();
    if (!needs_hold(block, word)) co_return Result<void>{};
    auto given_up = co_await give_up_volatile_holds();
    if (given_up) co_return Result<void>{};
  }
  co_return held;
}

/// Brings a block's content into the data file. Its content does not change, so neither does its
/// epoch.
Task<Result<void>> Engine::fill_block(BlockIndex block) {
  const auto guard = co_await locks_.exclusive(block);
  const MapWord word = live_->word(block);
  if (state_of(word) == BlockState::present) co_return Result<void>{};
  AlignedBuffer content = AlignedBuffer::zeroed(block_size_);
  const MutableBytes bytes = content.first(block_length(block));
  if (word.state() == BlockState::absent) CO_TRY(co_await read_backing(block_offset(block), bytes));
  if (sabotaged(Sabotage::presence_before_data))
    live_->set_word(block, MapWord::of(word.epoch(), BlockState::present));
  CO_TRY(co_await data_->write(block_offset(block), bytes));
  // Nobody else can have changed the word: that takes the lock.
  live_->set_word(block, MapWord::of(word.epoch(), BlockState::present));
  co_return Result<void>{};
}

namespace {

/// Counts the pieces of one request down; lives in the frame that waits for it.
struct Join {
  explicit Join(Loop& loop) : ended(loop) {}
  Event ended;
  std::size_t running = 0;
  std::optional<Error> error;
};

Task<> run_piece(Join& join, Task<Result<void>> piece) {
  auto result = co_await piece;
  if (!result && !join.error) join.error = std::move(result).error();
  --join.running;
  join.ended.notify_all();
}

}  // namespace

Task<Result<void>> Engine::run_all(std::vector<Task<Result<void>>> tasks) {
  Join join(loop_);
  for (auto& task : tasks) {
    while (join.running >= pieces_at_once) co_await join.ended.wait();
    if (join.error) break;
    ++join.running;
    tasks_.spawn(run_piece(join, std::move(task)));
  }
  while (join.running > 0) co_await join.ended.wait();
  if (join.error) co_return failure(std::move(*join.error));
  co_return Result<void>{};
}

}  // namespace berth::disk
