// What `--repair` writes, in an order in which an end at any point leaves the volume no worse:
// copies of what is known first, then what the volume admits to have lost, then the pages that rely
// on that.
#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "disk/check_steps.h"
#include "disk/likely_state.h"
#include "disk/locked_file.h"

namespace berth::disk {

Task<Result<void>> VolumeCheck::repair() {
  CO_TRY(co_await repair_superblock());
  CO_TRY(co_await repair_state());
  CO_TRY(co_await repair_holds());
  co_return co_await repair_pages();
}

Task<Result<void>> VolumeCheck::write_map(std::uint64_t offset, Bytes bytes) {
  const AlignedBuffer copy = AlignedBuffer::zeroed(round_up(bytes.size(), sector_size));
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  co_return co_await map_->write(offset, copy.bytes());
}

Task<Result<void>> VolumeCheck::repair_superblock() {
  if (!bad_superblock_) co_return Result<void>{};
  std::vector<std::byte> sector(sector_size);
  encode_superblock(superblock_, sector);
  CO_TRY(co_await write_map(*bad_superblock_, sector));
  CO_TRY(co_await map_->sync());
  mark_repaired(superblock_findings_);
  co_return Result<void>{};
}

/// The state as it is now admitted to be, as a new generation of the journal: one record, so all of
/// it or none.
Task<Result<void>> VolumeCheck::repair_state() {
  const auto area_offset = [](unsigned area) {
    return area == 0 ? journal_offset_a : journal_offset_b;
  };
  if (journal_.rebuilt_head) {
    CO_TRY(co_await write_map(area_offset(journal_.area), *journal_.rebuilt_head));
    CO_TRY(co_await map_->sync());
  }
  const bool gives_epochs = !live_ && (journal_.incomplete || repairs_pages());
  if (gives_epochs) {
    // Blocks of damaged pages get the newest epoch that anything has, which is after every
    // reference point, and the volume goes on in the next: so they are reported, and never take the
    // fast path (rule 2).
    if (newest_epoch_ >= epoch_max)
      co_return failure(ErrorKind::limit, "the volume has used up its epochs");
    state().recovered = newest_epoch_;
    state().epoch = newest_epoch_ + 1;
    // As the sum will be when the pages are written. Until then it is wrong, and the volume knows.
    state().page_versions = page_versions_ + versions_unaccounted_;
    for (const PageDamage& damage : damaged_pages_) {
      if (damage.kind != PageKind::torn) state().page_versions += damage.sequence == 0 ? 2 : 1;
    }
    state_changed_ = true;
  }
  if (state_changed_) {
    const auto record = encode_state(superblock_.volume, journal_.generation + 1, state());
    if (record.size() > journal_area_size / 2) {
      co_return failure(ErrorKind::limit,
                        "the volume's reference points fill its journal; delete some");
    }
    // Not where the state comes from: that one counts until this one is whole.
    const unsigned target = 1 - journal_.area;
    CO_TRY(co_await write_map(area_offset(target), record));
    CO_TRY(co_await map_->sync());
    journal_.refuses[target] = false;
  }
  for (unsigned area = 0; area < 2; ++area) {
    if (!journal_.refuses[area]) continue;
    const std::vector<std::byte> zeros(sector_size);
    CO_TRY(co_await write_map(area_offset(area), zeros));
    CO_TRY(co_await map_->sync());
  }
  mark_repaired(state_findings_);
  co_return Result<void>{};
}

Task<Result<void>> VolumeCheck::repair_holds() {
  for (const SlotRepair& slot : slot_repairs_) {
    const auto same = [&slot](const Layer& layer) { return layer.id == slot.layer; };
    if (std::ranges::any_of(state().layers, same)) {
      auto file = CO_TRY(
          co_await open_locked(loop_, *holds_, HoldLayer::file_name(slot.layer), {.direct = true}));
      const AlignedBuffer bytes =
          AlignedBuffer::zeroed(slot.block == block_none ? sector_size : superblock_.block_size);
      if (slot.block == block_none) {
        encode_hold_header({.volume = superblock_.volume,
                            .layer = slot.layer,
                            .block_size = superblock_.block_size},
                           bytes.bytes());
      } else {
        const MutableBytes content = bytes.first(block_length(slot.block));
        const std::size_t got =
            CO_TRY(co_await data_->read(slot.block * superblock_.block_size, content));
        if (got != content.size())
          co_return failure(ErrorKind::corrupt, "the data file has become shorter");
      }
      CO_TRY(co_await file->write(slot.offset, bytes.bytes()));
      CO_TRY(co_await file->sync());
    }
    mark_repaired({slot.finding});
  }
  co_return Result<void>{};
}

Task<Result<void>> VolumeCheck::repair_pages() {
  if (pages_beyond_end_) {
    CO_TRY(map_->truncate(page_slot_offset(page_count(), 0)));
    CO_TRY(co_await map_->sync());
    mark_repaired(end_findings_);
  }
  if (!repairs_pages()) co_return Result<void>{};
  for (const PageDamage& damage : damaged_pages_) {
    if (damage.kind == PageKind::torn) continue;
    if (live_) {
      // The next flush writes it; until then the live map is what counts.
      live_->mark_dirty(damage.page, dirty_epochs | dirty_states);
    } else {
      CO_TRY(co_await repair_page(damage));
    }
  }
  CO_TRY(co_await map_->sync());
  mark_repaired(page_findings_);
  co_return Result<void>{};
}

Task<Result<void>> VolumeCheck::repair_page(PageDamage damage) {
  std::vector<MapWord> words(words_per_page);
  if (damage.sequence != 0) {
    const AlignedBuffer sector = AlignedBuffer::zeroed(page_size);
    CO_TRY(co_await map_->read(page_slot_offset(damage.page, page_slot_of(damage.sequence)),
                               sector.bytes()));
    if (!decode_page(superblock_.volume, damage.page, sector.bytes(), words)) {
      co_return failure(ErrorKind::corrupt,
                        fmt::format("page {} of the map changes while it is read", damage.page));
    }
  }
  const BlockIndex first = damage.page * words_per_page;
  for (std::uint64_t i = 0; i < words_per_page; ++i) {
    const BlockIndex block = first + i;
    if (block >= block_count()) {
      words[i] = MapWord{};
      continue;
    }
    const bool known = damage.sequence != 0;
    const std::uint64_t start = block * superblock_.block_size;
    const bool data = data_ && CO_TRY(has_data(*data_, start, block_length(block)));
    words[i] = MapWord::of(
        newest_epoch_, likely_state(known ? std::optional(words[i].state()) : std::nullopt, data,
                                    !state().backing.empty()));
  }
  // Of a page without a whole version, both slots: nothing that is damaged is left.
  const std::uint64_t last = damage.sequence == 0 ? 2 : damage.sequence + 1;
  std::vector<std::byte> page(page_size);
  for (std::uint64_t sequence = damage.sequence + 1; sequence <= last; ++sequence) {
    encode_page(superblock_.volume, {.page = damage.page, .sequence = sequence}, words, page);
    CO_TRY(co_await write_map(page_slot_offset(damage.page, page_slot_of(sequence)), page));
  }
  co_return Result<void>{};
}

}  // namespace berth::disk
