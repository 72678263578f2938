// Checking the intents and the pages of the map.
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "disk/check_steps.h"

namespace berth::disk {
namespace {

constexpr std::size_t pages_at_once = 256;  // read together: 2 MiB

}  // namespace

// --- Intents.

Task<Result<void>> VolumeCheck::check_intents() {
  IntentRing ring;
  const AlignedBuffer slot_bytes(intent_slot_size);
  for (std::uint64_t slot = 0; slot < intent_slot_count; ++slot) {
    const std::string where = fmt::format("map, intent slot {}", slot);
    std::memset(slot_bytes.data(), 0, intent_slot_size);
    const std::size_t got = CO_TRY(co_await read(
        *map_, where, intent_ring_offset + slot * intent_slot_size, slot_bytes.bytes()));
    ring.add(superblock_.volume, slot_bytes.first(got));
  }
  const std::uint64_t sequence = ring.newest_sequence();
  for (std::uint64_t slot = 0; slot < intent_slot_count; ++slot) {
    if (ring.slot(slot) != IntentRing::Slot::other) continue;
    const bool next = slot == (sequence + 1) % intent_slot_count;
    add(next ? Severity::note : Severity::warning, fmt::format("map, intent slot {}", slot),
        next ? "the last commit was cut short: nothing that it announced was written"
             : "a record is damaged");
  }
  if (sequence > state().intents_before) {
    for (const HotRegion& hot : ring.newest()->regions)
      newest_epoch_ = std::max(newest_epoch_, hot.epoch);
  }
  // Of a closed volume nothing depends on the ring. Else what was announced last may be gone.
  if (state().clean || !ring.may_lack_newer(state().intents_before)) co_return Result<void>{};
  if (live_) {
    add(Severity::warning, "map, intents",
        "the newest records may be gone; the live map has what they said");
    co_return Result<void>{};
  }
  error("map, intents",
        "the newest records may be gone, and the machine has stopped since: which blocks were "
        "being written cannot be known. The next open goes on, and changes since every reference "
        "point ask for a full backup");
  co_return Result<void>{};
}

// --- Pages.

Task<Result<void>> VolumeCheck::check_pages() {
  const AlignedBuffer slots(2 * pages_at_once * page_size);
  std::uint64_t page = 0;
  while (page < page_count()) {
    const std::uint64_t data = CO_TRY(map_->next_data(page_slot_offset(page, 0)));
    if (data >= CO_TRY(map_->size())) break;
    page = std::max(page, (data - pages_offset) / (2 * page_size));
    if (page >= page_count()) break;
    const std::uint64_t count = std::min<std::uint64_t>(pages_at_once, page_count() - page);
    const MutableBytes bytes = slots.first(2 * count * page_size);
    std::memset(bytes.data(), 0, bytes.size());
    CO_TRY(co_await read(*map_, fmt::format("map, from page {} on", page),
                         page_slot_offset(page, 0), bytes));
    for (std::uint64_t i = 0; i < count; ++i)
      check_page(page + i, bytes.subspan(2 * i * page_size, 2 * page_size));
    page += count;
    co_await loop_.yield();
  }
  judge_pages();
  tell_of_pages();
  tell_of_missing_holds();
  co_return check_end_of_pages();
}

void VolumeCheck::check_page(std::uint64_t page, Bytes slots) {
  if (is_zero(slots)) return;
  ++report_.pages;
  std::array<std::vector<MapWord>, 2> words{std::vector<MapWord>(words_per_page),
                                            std::vector<MapWord>(words_per_page)};
  std::array<std::uint64_t, 2> sequences{};  // 0: no page
  std::array<bool, 2> zero{};
  for (unsigned slot = 0; slot < 2; ++slot) {
    const Bytes bytes = slots.subspan(slot * page_size, page_size);
    zero[slot] = is_zero(bytes);
    const auto header = decode_page(superblock_.volume, page, bytes, words[slot]);
    if (header && page_slot_of(header->sequence) == slot) {
      sequences[slot] = header->sequence;
    } else {
      std::ranges::fill(words[slot], MapWord{});
    }
  }
  const unsigned newer = sequences[1] > sequences[0] ? 1 : 0;
  const unsigned older = 1 - newer;
  PageDamage damage{.page = page, .sequence = sequences[newer], .kind = PageKind::whole};
  if (sequences[newer] == 0) {
    // The first write of a page goes to the first slot; torn, it leaves zeros in the second.
    damage.kind = !zero[0] && zero[1] ? PageKind::torn : PageKind::lost;
  } else if (sequences[older] == 0) {
    // One slot has never been written, or a write was cut short, or one of two whole slots was
    // damaged since.
    const bool first_write = sequences[newer] == 1 && zero[older];
    if (!first_write) damage.kind = PageKind::torn;
  }
  page_versions_ += sequences[newer];
  if (sequences[newer] != 0) note_words(page, words[newer]);
  // Of a page that is lost the words are zero: what the layers say of each other counts all the
  // same.
  compare_with_holds(page, words[newer]);
  if (live_) damage.kind = kind_beside_live_map(page, damage.kind, sequences);
  if (damage.kind == PageKind::whole) return;
  if (damaged_pages_.size() < damaged_pages_max) {
    damaged_pages_.push_back(damage);
  } else {
    error(fmt::format("map, page {}", page), "there are more damaged pages than can be repaired");
  }
}

/// A live map knows which version of a page the disk should have, and has itself what is newer.
VolumeCheck::PageKind VolumeCheck::kind_beside_live_map(
    std::uint64_t page, PageKind kind, const std::array<std::uint64_t, 2>& sequences) const {
  const LivePage& known = live_->page(page);
  if (known.dirt == clean_page && known.sequence == 0) return PageKind::stray;
  if (known.dirt == clean_page && sequences[page_slot_of(known.sequence)] != known.sequence)
    return PageKind::lost;
  return kind == PageKind::whole ? kind : PageKind::torn;
}

void VolumeCheck::note_words(std::uint64_t page, std::span<const MapWord> words) {
  Epoch newest = 0;
  for (const MapWord word : words) newest = std::max(newest, word.epoch());
  if (state().clean && newest > state().epoch) {
    add(Severity::warning, fmt::format("map, page {}", page),
        fmt::format("it has blocks of epoch {}, and the volume is in epoch {}", newest,
                    state().epoch));
  }
  newest_epoch_ = std::max(newest_epoch_, newest);
  const std::uint64_t within =
      std::min<std::uint64_t>(words_per_page, block_count() - page * words_per_page);
  const auto beyond = words.subspan(within);
  if (std::ranges::any_of(beyond, [](MapWord word) { return word.raw != 0; }) &&
      !state().pending_resize) {
    add(Severity::warning, fmt::format("map, page {}", page),
        "it has words beyond the end of the volume");
  }
}

/// Whoever overwrites a block that a checkpoint needs holds it first. So what a checkpoint reads of
/// a block, from the first layer that has it or else live, last changed in its epoch or before; or
/// the checkpoint lacks it. Epochs up to the last recovery's say nothing: it gives them to blocks
/// that nobody wrote (rule 2).
void VolumeCheck::compare_with_holds(std::uint64_t page, std::span<const MapWord> words) {
  std::vector<const Checkpoint*> checkpoints;
  for (const Checkpoint& checkpoint : state().checkpoints) {
    const bool counts = volatile_holds_count() || checkpoint.durability == Durability::durable;
    if (!checkpoint.lost && counts) checkpoints.push_back(&checkpoint);
  }
  if (checkpoints.empty()) return;
  std::vector<std::pair<Epoch, const HeldEpochs*>> layers;
  for (const auto& [epoch, pages] : held_) {
    if (const auto found = pages.find(page); found != pages.end())
      layers.emplace_back(epoch, &found->second);
  }
  for (std::uint64_t i = 0; i < words_per_page; ++i) {
    const BlockIndex block = page * words_per_page + i;
    Epoch changed = words[i].epoch();
    if (layers.empty() && changed <= checkpoints.front()->epoch) continue;
    std::size_t layer = layers.size();
    for (std::size_t one = checkpoints.size(); one-- > 0;) {
      const Checkpoint& checkpoint = *checkpoints[one];
      for (; layer > 0 && layers[layer - 1].first >= checkpoint.epoch; --layer) {
        if (const Epoch held = (*layers[layer - 1].second)[i]; held != not_held) changed = held;
      }
      const bool within = block * superblock_.block_size < checkpoint.size;
      if (!within || changed <= std::max(checkpoint.epoch, state().recovered)) continue;
      Missing& missing = missing_[checkpoint.name];
      if (missing.blocks++ == 0) missing.first = block;
    }
  }
}

void VolumeCheck::tell_of_missing_holds() {
  LostEvent lost;
  for (const auto& [name, missing] : missing_) {
    state_findings_.push_back(error(
        fmt::format("checkpoint '{}'", name),
        fmt::format(
            "{} blocks have changed since, and no hold has them (the first is {}): it is lost",
            missing.blocks, missing.first),
        true));
    lost.checkpoints.push_back(name);
  }
  if (lost.checkpoints.empty()) return;
  (void)state().apply(lost);  // names only what there is, so it applies
  state_changed_ = true;
}

/// Once all are known: of a closed volume, whether the versions that count are those of the close.
/// If so, slots that are not whole had older ones, or writes that were cut short before it.
void VolumeCheck::judge_pages() {
  if (!state().clean) return;
  const std::uint64_t missing = state().page_versions - page_versions_;
  if (missing == 0) return;
  std::uint64_t explained = 0;
  bool any = false;  // may be missing of a page without a whole version
  for (PageDamage& damage : damaged_pages_) {
    if (damage.kind == PageKind::torn)
      damage.kind = damage.sequence == 0 ? PageKind::lost : PageKind::one_left;
    if (damage.sequence == 0) any = true;
    ++explained;
  }
  if (any || missing <= explained) return;
  versions_unaccounted_ = missing - explained;
  error("map, pages",
        "versions of pages that were there at the close are not, and nothing tells of which: the "
        "next open goes on with what there is, and changes since every reference point ask for a "
        "full backup");
}

/// A finding for each run of pages in the same condition.
void VolumeCheck::tell_of_pages() {
  for (std::size_t i = 0; i < damaged_pages_.size();) {
    const PageDamage& first = damaged_pages_[i];
    std::size_t end = i + 1;
    while (end < damaged_pages_.size() && damaged_pages_[end].kind == first.kind &&
           damaged_pages_[end].page == first.page + (end - i)) {
      ++end;
    }
    std::string where =
        end - i == 1 ? fmt::format("map, page {}", first.page)
                     : fmt::format("map, pages {} to {}", first.page, first.page + (end - i) - 1);
    i = end;
    const std::string remedy =
        live_                 ? "; the live map has what belongs there"
        : !may_repair_pages() ? "; open and close the volume, or say where its live map would be"
                              : "; its blocks are reported as changed";
    const bool repairable = may_repair_pages();
    switch (first.kind) {
      case PageKind::whole: break;
      case PageKind::torn:
        add(Severity::note, std::move(where), "one of its slots is not whole, and does not count");
        break;
      case PageKind::one_left:
        page_findings_.push_back(error(
            std::move(where), "the newer one of its two slots is damaged" + remedy, repairable));
        break;
      case PageKind::stray:
        page_findings_.push_back(add(Severity::warning, std::move(where),
                                     "it was never written, and is not blank" + remedy,
                                     repairable));
        break;
      case PageKind::lost:
        page_findings_.push_back(
            error(std::move(where), "no whole version is left" + remedy, repairable));
        break;
    }
  }
}

/// A later growth would find what lies beyond the end, and take it for newer than its own.
Result<void> VolumeCheck::check_end_of_pages() {
  const std::uint64_t end = page_slot_offset(page_count(), 0);
  const std::uint64_t size = TRY(map_->size());
  if (size <= end || TRY(map_->next_data(end)) >= size) return {};
  if (state().pending_resize) {
    add(Severity::note, "map",
        "there are pages beyond the end: the unfinished resize removes them");
    return {};
  }
  pages_beyond_end_ = true;
  end_findings_.push_back(error(
      "map",
      fmt::format("there are pages beyond number {}, the last of the volume", page_count() - 1),
      true));
  return {};
}

}  // namespace berth::disk
