#include "disk/hold_layer.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/checksum.h"
#include "disk/hold_format.h"
#include "disk/locked_file.h"

namespace berth::disk {

std::string HoldLayer::file_name(LayerId id) { return fmt::format("{:016x}", id); }

Task<Result<std::shared_ptr<HoldLayer>>> HoldLayer::create(Loop& loop, Directory& holds,
                                                           Identity identity) {
  auto file = CO_TRY(
      co_await open_locked(loop, holds, file_name(identity.id), {.create = true, .direct = true}));
  CO_TRY(file->truncate(0));
  std::shared_ptr<HoldLayer> layer(new HoldLayer(loop, std::move(file), identity));
  AlignedBuffer header(sector_size);
  encode_hold_header(
      {.volume = identity.volume, .layer = identity.id, .block_size = identity.block_size},
      header.bytes());
  CO_TRY(co_await layer->file_->write(0, header.bytes()));
  CO_TRY(co_await layer->file_->sync());
  co_return layer;
}

Task<Result<std::shared_ptr<HoldLayer>>> HoldLayer::open(Loop& loop, Directory& holds,
                                                         Identity identity,
                                                         std::uint64_t block_count) {
  auto file = CO_TRY(co_await open_locked(loop, holds, file_name(identity.id), {.direct = true}));
  std::shared_ptr<HoldLayer> layer(new HoldLayer(loop, std::move(file), identity));
  CO_TRY(co_await layer->file_->sync());
  AlignedBuffer sector = AlignedBuffer::zeroed(sector_size);
  CO_TRY(co_await layer->file_->read(0, sector.bytes()));
  const HoldHeader header = CO_TRY(decode_hold_header(sector.bytes()));
  if (header.volume != identity.volume || header.layer != identity.id ||
      header.block_size != identity.block_size) {
    co_return failure(ErrorKind::corrupt,
                      fmt::format("the hold '{}' is of another volume", layer->file_->name()));
  }
  CO_TRY(co_await layer->read_index(loop, block_count));
  co_return layer;
}

// Entries are relied on in any order within the window of slots in flight, so a torn one can lie up
// to that far before the end: there, the bytes are verified too. Before it every slot was once
// whole.
Task<Result<void>> HoldLayer::read_index(Loop& loop, std::uint64_t block_count) {
  const std::uint64_t size = CO_TRY(file_->size());
  const std::uint64_t slots = size <= sector_size ? 0 : divide_up(size - sector_size, frame_size());
  const std::uint64_t window_start =
      slots > 2 * slots_in_flight_max ? slots - 2 * slots_in_flight_max : 0;
  AlignedBuffer frame = AlignedBuffer::zeroed(frame_size());
  std::uint64_t since_yield = 0;
  for (std::uint64_t slot = 0; slot < slots; ++slot) {
    const bool verify = slot >= window_start;
    const std::size_t wanted = verify ? frame_size() : sector_size;
    const std::size_t got = CO_TRY(co_await file_->read(slot_offset(slot), frame.first(wanted)));
    const auto entry = decode_hold_entry(identity_.volume, identity_.id, slot,
                                         frame.first(std::min(got, sector_size)));
    bool whole = entry.has_value() && entry->block < block_count;
    if (whole && verify && entry->kind == HeldKind::data) {
      whole = got == frame_size() &&
              checksum64(frame.bytes().subspan(sector_size)) == entry->data_checksum;
    }
    if (!whole) {
      if (verify) {
        unreliable_.insert(slot);
        torn_.push_back(slot);
        continue;
      }
      co_return failure(ErrorKind::corrupt, fmt::format("the hold '{}' is damaged at slot {} of {}",
                                                        file_->name(), slot, slots));
    }
    if (!holds(entry->block)) {
      insert(entry->block,
             {.slot = static_cast<std::uint32_t>(slot), .word = entry->word, .kind = entry->kind});
    }
    if (++since_yield % 1024 == 0) co_await loop.yield();
  }
  std::ranges::reverse(torn_);  // the lowest is used first
  next_slot_ = slots;
  slots_allocated_ = slots;
  co_return Result<void>{};
}

HeldBlock HoldLayer::find(BlockIndex block) const {
  const std::uint64_t page = page_of(block);
  if (page >= index_.size() || index_[page] == nullptr) return {};
  return (*index_[page])[block % words_per_page];
}

void HoldLayer::insert(BlockIndex block, HeldBlock held) {
  const std::uint64_t page = page_of(block);
  if (page >= index_.size()) index_.resize(page + 1);
  if (index_[page] == nullptr) index_[page] = std::make_unique<IndexPage>();
  (*index_[page])[block % words_per_page] = held;
  ++entries_;
  if (held.kind == HeldKind::data) ++data_entries_;
  if (held.kind == HeldKind::backing) ++backing_entries_;
}

Task<Result<void>> HoldLayer::append(BlockIndex block, MapWord word, HeldKind kind,
                                     AlignedBuffer& frame, bool durable) {
  const std::uint64_t slot = co_await take_slot();
  if (slot > UINT32_MAX) co_return failure(ErrorKind::limit, "a hold has no slots left");

  const Bytes data = kind == HeldKind::data
                         ? Bytes(frame.bytes().subspan(sector_size, identity_.block_size))
                         : Bytes{};
  encode_hold_entry(identity_.volume, identity_.id, slot,
                    {.block = block,
                     .word = word,
                     .kind = kind,
                     .data_checksum = data.empty() ? 0 : checksum64(data)},
                    frame.first(sector_size));
  auto done = co_await file_->write(slot_offset(slot), frame.first(sector_size + data.size()));
  if (done && durable) done = co_await sync_after(syncs_begun_ + 1);
  if (!done) {
    torn_.push_back(slot);
    window_.notify_all();
    co_return done;
  }
  unreliable_.erase(slot);
  window_.notify_all();
  // Somebody else's entry for the block cannot be there: the engine holds the block's lock.
  insert(block, {.slot = static_cast<std::uint32_t>(slot), .word = word, .kind = kind});
  co_return Result<void>{};
}

Task<std::uint64_t> HoldLayer::take_slot() {
  for (;;) {
    if (!torn_.empty()) {
      const std::uint64_t slot = torn_.back();
      torn_.pop_back();
      co_return slot;
    }
    const bool too_far =
        !unreliable_.empty() && next_slot_ - *unreliable_.begin() >= slots_in_flight_max;
    if (!too_far && next_slot_ < slots_allocated_) {
      unreliable_.insert(next_slot_);
      co_return next_slot_++;
    }
    if (too_far || growing_) {
      co_await window_.wait();
    } else {
      co_await grow();
    }
  }
}

/// Makes the file longer: by as much as is used already, within limits.
Task<> HoldLayer::grow() {
  growing_ = true;
  const std::uint64_t most =
      std::clamp(bytes_ahead_max / frame_size(), std::uint64_t{1}, slots_in_flight_max);
  const std::uint64_t count = std::clamp(next_slot_, std::min(slots_ahead_min, most), most);
  const auto grown = co_await file_->zero(slot_offset(next_slot_), count * frame_size());
  // Where there is no room for so many there may be for one; if not, its write says so.
  slots_allocated_ = next_slot_ + (grown ? count : 1);
  growing_ = false;
  window_.notify_all();
}

void HoldLayer::trim() {
  std::uint64_t end = next_slot_;
  while (end > 0 && unreliable_.contains(end - 1)) --end;
  unreliable_.erase(unreliable_.lower_bound(end), unreliable_.end());
  torn_.assign(unreliable_.rbegin(), unreliable_.rend());
  // Space that cannot be given back does no harm.
  if (file_->truncate(slot_offset(end))) next_slot_ = slots_allocated_ = end;
}

/// Ends when sync number `ticket`, one that began after this call, has ended.
Task<Result<void>> HoldLayer::sync_after(std::uint64_t ticket) {
  while (syncs_ended_ < ticket && !sync_error_) {
    if (sync_running_) {
      co_await synced_.wait();
      continue;
    }
    sync_running_ = true;
    const std::uint64_t mine = ++syncs_begun_;
    auto result = co_await file_->sync();
    sync_running_ = false;
    syncs_ended_ = mine;
    if (!result) sync_error_ = std::move(result).error();
    synced_.notify_all();
  }
  if (sync_error_) co_return failure(Error(*sync_error_));
  co_return Result<void>{};
}

Task<Result<void>> HoldLayer::read(HeldBlock held, std::uint64_t offset, MutableBytes into) {
  CHECK(held.kind == HeldKind::data && offset + into.size() <= identity_.block_size);
  if (into.size() != identity_.block_size) {
    const std::size_t got =
        CO_TRY(co_await file_->read(slot_offset(held.slot) + sector_size + offset, into));
    if (got != into.size()) co_return failure(bad_slot(held.slot));
    co_return Result<void>{};
  }
  AlignedBuffer frame(frame_size());
  const std::size_t got = CO_TRY(co_await file_->read(slot_offset(held.slot), frame.bytes()));
  if (got != frame_size()) co_return failure(bad_slot(held.slot));
  const Bytes data = frame.bytes().subspan(sector_size);
  const auto entry =
      decode_hold_entry(identity_.volume, identity_.id, held.slot, frame.first(sector_size));
  if (!entry || entry->data_checksum != checksum64(data)) co_return failure(bad_slot(held.slot));
  std::memcpy(into.data(), data.data(), data.size());
  co_return Result<void>{};
}

Task<Result<void>> HoldLayer::sync() { co_return co_await sync_after(syncs_begun_ + 1); }

Error HoldLayer::bad_slot(std::uint64_t slot) const {
  return {ErrorKind::corrupt,
          fmt::format("the hold '{}' is damaged at slot {}", file_->name(), slot)};
}

}  // namespace berth::disk
