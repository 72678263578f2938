// Checking the holds: what each layer has, and whether it is whole.
#include <algorithm>
#include <cstring>
#include <set>

#include <fmt/format.h>

#include "base/checksum.h"
#include "disk/check_steps.h"
#include "disk/locked_file.h"

namespace berth::disk {
namespace {

// As far before the end as HoldLayer::open takes a slot that is no entry for one that was being
// written. Before it every slot was once whole.
constexpr std::uint64_t torn_slots_max = 512;

std::string path_of(const Layer& layer) {
  return fmt::format("{}/{}", HoldLayer::directory_name, HoldLayer::file_name(layer.id));
}

}  // namespace

struct VolumeCheck::LayerCheck {
  Layer layer;
  std::string where;
  std::unique_ptr<File> file;
  HeldPages held;
  std::uint64_t slots = 0;
  std::uint64_t entries = 0;
  std::uint64_t torn = 0;
  std::vector<std::uint64_t> bad_slots;  // that nobody knows what they held
  std::optional<Handle> bad_header;
  bool given_up = false;
};

Task<Result<void>> VolumeCheck::check_holds() {
  const std::vector<Layer> recorded = state().layers;
  if (!holds_) {
    for (const Layer& layer : recorded) lose_layer(layer, path_of(layer), "it is missing");
    co_return Result<void>{};
  }
  for (const Layer& layer : recorded) {
    const auto same = [&layer](const Layer& one) { return one.id == layer.id; };
    if (std::ranges::none_of(state().layers, same))
      continue;  // nobody needs it since an older one was given up
    if (!volatile_holds_count() && !state().layer_is_durable(layer.epoch)) {
      add(Severity::note, path_of(layer),
          "only volatile checkpoints need it: the next open gives them up");
      continue;
    }
    CO_TRY(co_await check_layer(layer));
  }
  co_return check_leftovers();
}

Task<Result<void>> VolumeCheck::check_layer(const Layer& layer) {
  LayerCheck check{.layer = layer, .where = path_of(layer)};
  auto file = co_await open_locked(loop_, *holds_, HoldLayer::file_name(layer.id),
                                   {.read_only = !options_.repair, .direct = true});
  if (!file && file.error().kind() == ErrorKind::not_found) {
    lose_layer(layer, check.where, "it is missing");
    co_return Result<void>{};
  }
  if (!file) co_return failure(std::move(file).error());
  check.file = std::move(*file);
  ++report_.hold_layers;

  const std::size_t frame_size = sector_size + superblock_.block_size;
  const std::uint64_t size = CO_TRY(check.file->size());
  check.slots = size <= sector_size ? 0 : divide_up(size - sector_size, frame_size);
  const bool ours = CO_TRY(co_await check_layer_header(check));
  if (!ours) co_return Result<void>{};
  const AlignedBuffer frame(frame_size);
  for (std::uint64_t slot = 0; slot < check.slots; ++slot) {
    const std::uint64_t offset = slot_offset(slot);
    std::memset(frame.data(), 0, sector_size);
    const std::size_t got = CO_TRY(co_await read(
        *check.file, fmt::format("{}, slot {}", check.where, slot), offset, frame.bytes()));
    CO_TRY(co_await check_slot(check, slot, frame.first(got)));
    if (slot % 64 == 63) co_await loop_.yield();
  }
  report_.hold_entries += check.entries;

  if (check.bad_header) {
    // What belongs there is known; that the file is this layer, its entries say.
    if (check.entries > 0 || check.slots == 0) {
      slot_repairs_.push_back(
          {.layer = layer.id, .offset = 0, .block = block_none, .finding = *check.bad_header});
    } else {
      state_findings_.push_back(*check.bad_header);
      lose_layer(layer, check.where, "nothing in it can be read");
      co_return Result<void>{};
    }
  }
  if (check.torn > 0) {
    add(Severity::note, check.where,
        fmt::format("{} slots near the end hold no entry: never written, or cut short",
                    check.torn));
  }
  if (!check.bad_slots.empty()) {
    lose_layer(layer, fmt::format("{}, slot {}", check.where, check.bad_slots.front()),
               fmt::format("{} of {} slots are damaged, and what they held is not known",
                           check.bad_slots.size(), check.slots));
    co_return Result<void>{};
  }
  held_.emplace_back(layer.epoch, std::move(check.held));
  co_return Result<void>{};
}

/// False: the file is not this layer, and everything that needs it is given up.
Task<Result<bool>> VolumeCheck::check_layer_header(LayerCheck& check) {
  const AlignedBuffer sector = AlignedBuffer::zeroed(sector_size);
  CO_TRY(co_await read(*check.file, check.where, 0, sector.bytes()));
  const auto header = decode_hold_header(sector.bytes());
  if (!header) {
    if (header.error().kind() != ErrorKind::corrupt) co_return failure(Error(header.error()));
    check.bad_header =
        error(check.where, header.error().message() + "; its entries say what belongs there", true);
    co_return true;
  }
  if (header->volume == superblock_.volume && header->layer == check.layer.id &&
      header->block_size == superblock_.block_size) {
    co_return true;
  }
  lose_layer(check.layer, check.where, "it is a hold of another volume");
  co_return false;
}

Task<Result<void>> VolumeCheck::check_slot(LayerCheck& check, std::uint64_t slot, Bytes frame) {
  const std::string where = fmt::format("{}, slot {}", check.where, slot);
  const bool may_be_torn = slot + torn_slots_max >= check.slots;
  const auto entry =
      decode_hold_entry(superblock_.volume, check.layer.id, slot,
                        frame.first(std::min<std::size_t>(frame.size(), sector_size)));
  if (!entry || entry->block >= block_count()) {
    if (may_be_torn) {
      ++check.torn;
    } else {
      check.bad_slots.push_back(slot);
    }
    co_return Result<void>{};
  }
  const auto [page, is_new] = check.held.try_emplace(page_of(entry->block));
  if (is_new) page->second.fill(not_held);
  Epoch& held = page->second[entry->block % words_per_page];
  const bool first = held == not_held;  // the first entry of a block counts
  if (first && entry->kind == HeldKind::data) {
    const Bytes data = frame.subspan(sector_size);
    const bool whole =
        data.size() == superblock_.block_size && checksum64(data) == entry->data_checksum;
    if (!whole && may_be_torn) {
      // Then its block was never overwritten, or it is held elsewhere: to be seen when all is
      // known.
      ++check.torn;
      torn_entries_.push_back({.layer = check.layer,
                               .slot = slot,
                               .block = entry->block,
                               .data_checksum = entry->data_checksum});
      co_return Result<void>{};
    }
    if (!whole) {
      const std::string what =
          fmt::format("the bytes of block {} have a bad checksum", entry->block);
      const bool elsewhere = CO_TRY(co_await data_file_has(entry->block, entry->data_checksum));
      if (elsewhere) {
        slot_repairs_.push_back(
            {.layer = check.layer.id,
             .offset = slot_offset(slot) + sector_size,
             .block = entry->block,
             .finding = error(where, what + "; the data file still has them", true)});
      } else {
        lose_block(check.layer, entry->block, where, what);
      }
    }
    report_.hold_bytes += data.size();
  }
  if (first) held = entry->word.epoch();
  ++check.entries;
  co_return Result<void>{};
}

/// Entries that look cut short, now that all layers are known. One that was cut short was followed
/// by no overwrite of its block; so where the block's bytes are neither held elsewhere nor in the
/// data file, it was whole once.
Task<Result<void>> VolumeCheck::check_torn_entries() {
  for (const TornEntry& entry : torn_entries_) {
    const auto needs_it = [&](const Checkpoint& checkpoint) {
      return !checkpoint.lost && checkpoint.epoch <= entry.layer.epoch &&
             !is_held(checkpoint.epoch, entry.block);
    };
    if (std::ranges::none_of(state().checkpoints, needs_it)) continue;
    const bool elsewhere = CO_TRY(co_await data_file_has(entry.block, entry.data_checksum));
    if (elsewhere) continue;
    lose_block(entry.layer, entry.block,
               fmt::format("{}, slot {}", path_of(entry.layer), entry.slot),
               fmt::format("the bytes of block {} have a bad checksum", entry.block));
  }
  co_return Result<void>{};
}

/// Whether the data file has the content that a hold lost. Then it was not overwritten after it was
/// held.
Task<Result<bool>> VolumeCheck::data_file_has(BlockIndex block, std::uint64_t checksum) {
  if (!data_) co_return false;
  const AlignedBuffer content = AlignedBuffer::zeroed(superblock_.block_size);
  const MutableBytes bytes = content.first(block_length(block));
  const std::size_t got = CO_TRY(co_await read(*data_, fmt::format("data, block {}", block),
                                               block * superblock_.block_size, bytes));
  co_return got == bytes.size() && checksum64(content.bytes()) == checksum;
}

/// Whether a checkpoint of that epoch finds the block in a layer.
bool VolumeCheck::is_held(Epoch checkpoint, BlockIndex block) const {
  return std::ranges::any_of(held_, [&](const auto& layer) {
    if (layer.first < checkpoint) return false;
    const auto page = layer.second.find(page_of(block));
    return page != layer.second.end() && page->second[block % words_per_page] != not_held;
  });
}

/// A layer is gone: with it go the checkpoints at or before it, and no other (rule 7).
void VolumeCheck::lose_layer(const Layer& layer, std::string where, std::string what) {
  LostEvent lost;
  for (const Checkpoint& checkpoint : state().checkpoints) {
    if (!checkpoint.lost && checkpoint.epoch <= layer.epoch)
      lost.checkpoints.push_back(checkpoint.name);
  }
  state_findings_.push_back(error(std::move(where),
                                  fmt::format("{}; what needs it is lost: the checkpoints '{}'",
                                              what, fmt::join(lost.checkpoints, "', '")),
                                  true));
  (void)state().apply(lost);  // names only what there is, so it applies
  state_changed_ = true;
}

/// One block of a layer is gone. Checkpoints that find it in an older layer need none of this one.
void VolumeCheck::lose_block(const Layer& layer, BlockIndex block, std::string where,
                             std::string what) {
  LostEvent lost;
  for (const Checkpoint& checkpoint : state().checkpoints) {
    if (checkpoint.lost || checkpoint.epoch > layer.epoch || is_held(checkpoint.epoch, block))
      continue;
    lost.checkpoints.push_back(checkpoint.name);
  }
  if (lost.checkpoints.empty()) {
    add(Severity::warning, std::move(where), what + "; no checkpoint needs them");
    return;
  }
  state_findings_.push_back(error(std::move(where),
                                  fmt::format("{}; what needs them is lost: the checkpoints '{}'",
                                              what, fmt::join(lost.checkpoints, "', '")),
                                  true));
  (void)state().apply(lost);  // names only what there is, so it applies
  state_changed_ = true;
}

Result<void> VolumeCheck::check_leftovers() {
  std::set<std::string> known;
  for (const Layer& layer : state().layers) known.insert(HoldLayer::file_name(layer.id));
  for (const std::string& name : TRY(holds_->list())) {
    if (known.contains(name)) continue;
    add(Severity::note, fmt::format("{}/{}", HoldLayer::directory_name, name),
        "no checkpoint needs it: the next open removes it");
  }
  return {};
}

}  // namespace berth::disk
