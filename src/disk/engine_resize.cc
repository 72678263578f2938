// Resize and revert: durable decisions that are rolled forward (rule 11).
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "disk/engine.h"

namespace berth::disk {
namespace {

/// Keeps everybody else's requests out while it lives.
class Exclusive {
 public:
  Exclusive(bool& flag, Event& ended) : flag_(flag), ended_(ended) { flag_ = true; }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;
  ~Exclusive() {
    flag_ = false;
    ended_.notify_all();
  }

 private:
  bool& flag_;
  Event& ended_;
};

Error unfinished(std::string_view what, Result<void> reason) {
  const std::string text =
      fmt::format("the {} could not be finished; close the volume and open it again", what);
  if (reason) return {ErrorKind::io_error, text};
  return {ErrorKind::io_error, text, std::move(reason).error()};
}

}  // namespace

Task<> Engine::shut_others_out() {
  while (requests_ > 0) co_await requests_ended_.wait();
}

// --- Resize.

Task<Result<void>> Engine::resize(std::uint64_t new_size) {
  if (new_size == 0 || new_size > volume_size_max || new_size % sector_size != 0) {
    co_return failure(ErrorKind::invalid_argument,
                      fmt::format("a size of {} is not a multiple of {} up to {}", new_size,
                                  sector_size, volume_size_max));
  }
  CO_TRY(may_change_points());
  if (cut_busy_) co_return failure(ErrorKind::in_use, "a cut is under way");
  const std::uint64_t old_size = size();
  if (new_size == old_size) co_return Result<void>{};
  if (new_size < old_size && !map_->state().checkpoints.empty()) {
    co_return failure(ErrorKind::precondition,
                      "a volume with checkpoints cannot shrink: delete or convert them first");
  }
  if (old_size % sector_size != 0) {
    co_return failure(
        ErrorKind::unsupported,
        fmt::format("a volume of {} bytes, which are no whole sectors, keeps its size", old_size));
  }
  const Exclusive alone(exclusive_, exclusive_ended_);
  co_await shut_others_out();
  co_await close_gate();
  auto done = co_await resize_behind_gate(old_size, new_size);
  if (map_->state().pending_resize || map_->failed())
    unfinished_ = unfinished("resize", std::move(done));
  open_gate();
  if (unfinished_) co_return failure(Error(*unfinished_));
  co_return done;
}

Task<Result<void>> Engine::resize_behind_gate(std::uint64_t old_size, std::uint64_t new_size) {
  if (new_size > old_size) {
    const std::uint64_t available = CO_TRY(data_->size());
    if (available < new_size) CO_TRY(data_->truncate(new_size));
    // The rest of the last block joins the volume; it may hold anything.
    const std::uint64_t tail_end = std::min(new_size, round_up(old_size, block_size_));
    if (tail_end > old_size) {
      const AlignedBuffer zeros = AlignedBuffer::zeroed(tail_end - old_size);
      CO_TRY(co_await data_->write(old_size, zeros.bytes()));
    }
    CO_TRY(co_await sync_data());
  }
  const ResizeEvent event{
      .size = new_size, .old_size = old_size, .epoch = live_->epoch(), .finished = false};
  // The new live map must be whole before the record makes it the one that counts.
  CO_TRY(co_await flush_map(dirty_epochs | dirty_states));
  {
    // What a flush has written by the time of the copy, the copy must know.
    const auto no_flush = co_await map_flush_.lock();
    auto next = CO_TRY(resized_live_map(event));
    if (auto recorded = co_await map_->append(event); !recorded) {
      // A record whose sync has failed may count, and its live map with it: the next open knows.
      if (!map_->failed()) (void)remove_successor();
      co_return recorded;
    }
    live_.emplace(std::move(next));
  }
  intents_.set_region_count(divide_up(size(), region_size));
  co_return co_await finish_resize(event);
}

/// A copy of the live map for the new size, under its own name if it has another number of pages.
Result<LiveMap> Engine::resized_live_map(const ResizeEvent& event) {
  LiveMap::Key key = live_key(map_->state().session);
  key.page_count = page_count_for(divide_up(event.size, block_size_));
  if (key.page_count == live_->page_count()) return LiveMap::adopt(environment_.live_store, key);
  live_->set_successor(key.page_count);
  LiveMap next = TRY(LiveMap::create(environment_.live_store, key, live_->epoch()));
  for (std::uint64_t page = 0; page < std::min(next.page_count(), live_->page_count()); ++page) {
    const std::uint8_t dirt = live_->page(page).dirt;
    next.page(page) = live_->page(page);
    next.page(page).dirt = clean_page;
    next.mark_dirty(page, dirt);
    if (live_->page(page).epoch_max != 0 || live_->page(page).sequence != 0 ||
        live_->page(page).dirt != 0) {
      std::ranges::copy(live_->page_words(page), next.page_words(page).begin());
    }
  }
  return next;
}

/// The live map of a resize that was not decided.
Result<void> Engine::remove_successor() {
  const std::uint64_t pages = live_->successor();
  if (pages == 0) return {};
  TRY(remove_live_map(pages));
  live_->set_successor(0);
  return {};
}

/// It is no error if there is none.
Result<void> Engine::remove_live_map(std::uint64_t page_count) {
  auto removed = LiveMap::remove(environment_.live_store, map_->volume(), page_count);
  if (!removed && removed.error().kind() == ErrorKind::not_found) return {};
  return removed;
}

/// From the durable decision to the end; also after a death, with the volume at its new size
/// already and nobody else at work. Every step may be done twice.
Task<Result<void>> Engine::finish_resize(ResizeEvent event) {
  const BlockIndex old_blocks = divide_up(event.old_size, block_size_);
  // The live map of the old size goes: nothing goes on with it any more.
  if (const std::uint64_t old_pages = page_count_for(old_blocks);
      old_pages != live_->page_count()) {
    (void)remove_live_map(old_pages);
  }
  if (event.size > event.old_size) {
    for (BlockIndex block = old_blocks; block < block_count(); ++block) {
      live_->set_word(block, MapWord::of(event.epoch, BlockState::zero));
    }
  } else {
    // Words beyond the end would be believed by a later growth.
    const BlockIndex words_end = live_->page_count() * words_per_page;
    for (BlockIndex block = block_count(); block < words_end; ++block)
      live_->set_word(block, MapWord{});
    backing_size_ = std::min(backing_size_, event.size);
    CO_TRY(co_await map_->truncate_pages(live_->page_count()));
  }
  CO_TRY(co_await flush_map(dirty_epochs | dirty_states));
  const FileIdentity identity = CO_TRY(data_->identity());
  if (event.size < event.old_size && identity.device_id.empty())
    CO_TRY(data_->truncate(event.size));
  event.finished = true;
  co_return co_await map_->append(event);
}

// --- Revert.

Task<Result<void>> Engine::revert(std::string checkpoint) {
  CO_TRY(may_change_points());
  if (cut_busy_) co_return failure(ErrorKind::in_use, "a cut is under way");
  const Checkpoint* target = map_->state().find_checkpoint(checkpoint);
  if (target == nullptr) {
    co_return failure(ErrorKind::not_found, fmt::format("there is no checkpoint '{}'", checkpoint));
  }
  if (target->lost || target->provisional) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the checkpoint '{}' cannot be reverted to: it is {}", checkpoint,
                                  target->lost ? "given up" : "undecided"));
  }
  const Exclusive alone(exclusive_, exclusive_ended_);
  co_await shut_others_out();
  for (const auto& layer : layers_) {
    if (layer->epoch() >= target->epoch) CO_TRY(co_await layer->sync());
  }
  auto done = co_await map_->append(RevertEvent{.checkpoint = checkpoint, .finished = false});
  if (done) done = co_await finish_revert({.checkpoint = checkpoint, .finished = false});
  // A record whose sync has failed may count at the next open.
  if (!map_->state().pending_revert && !map_->failed()) co_return done;
  unfinished_ = unfinished("revert", std::move(done));
  co_return failure(Error(*unfinished_));
}

/// Ordinary writing of old content: it is tracked, and held for the checkpoints that need what it
/// replaces.
Task<Result<void>> Engine::finish_revert(RevertEvent event) {
  const Checkpoint* target = map_->state().find_checkpoint(event.checkpoint);
  if (target == nullptr) {
    co_return failure(
        ErrorKind::corrupt,
        fmt::format("the checkpoint '{}' of an unfinished revert is gone", event.checkpoint));
  }
  const CheckpointView view{.epoch = target->epoch, .size = target->size};
  ++readers_[event.checkpoint];
  auto done = co_await revert_blocks(view);
  --readers_[event.checkpoint];
  if (!done) co_return done;
  CO_TRY(co_await flush_shared());
  event.finished = true;
  co_return co_await map_->append(event);
}

Task<Result<void>> Engine::revert_blocks(CheckpointView view) {
  AlignedBuffer content(block_size_);
  for (BlockIndex block = 0; block < block_count(); ++block) {
    const std::uint64_t offset = block_offset(block);
    const std::uint64_t length = block_length(block);
    if (offset >= view.size) {
      CO_TRY(co_await zero_range(offset, length, false));  // grown since
      continue;
    }
    if (find_held(view.epoch, block, nullptr).kind == HeldKind::none) continue;  // as it was
    const std::uint64_t known = std::min(length, view.size - offset);
    CO_TRY(co_await read_as_of(view, offset, content.first(known)));
    std::memset(content.data() + known, 0, length - known);
    if (is_zero(content.first(length))) {
      CO_TRY(co_await zero_range(offset, length, false));
    } else {
      CO_TRY(co_await write_slow(offset, content.first(length)));
    }
  }
  co_return Result<void>{};
}

}  // namespace berth::disk
