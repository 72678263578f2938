// What was: checkpoints' bytes (rule 8), and which blocks have changed since (rule 1).
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "disk/engine.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

constexpr std::uint64_t pages_between_yields = 64;  // of a changes query: about 64,000 blocks

}  // namespace

HeldBlock Engine::find_held(Epoch checkpoint, BlockIndex block,
                            std::shared_ptr<HoldLayer>* layer) const {
  for (const auto& candidate : layers_) {
    if (candidate->epoch() < checkpoint) continue;
    const HeldBlock held = candidate->find(block);
    if (held.kind == HeldKind::none) continue;
    if (layer != nullptr) *layer = candidate;
    return held;
  }
  return {};
}

Task<Result<void>> Engine::read_held(HoldLayer& layer, HeldBlock held, BlockIndex block,
                                     std::uint64_t within, MutableBytes into) {
  switch (held.kind) {
    case HeldKind::data:
      if (is_aligned(within, into.size()) && is_aligned(into.data())) {
        co_return co_await layer.read(held, within, into);
      } else {
        AlignedBuffer whole(block_size_);
        CO_TRY(co_await layer.read(held, 0, whole.bytes()));
        std::memcpy(into.data(), whole.data() + within, into.size());
        co_return Result<void>{};
      }
    case HeldKind::backing: co_return co_await read_backing(block_offset(block) + within, into);
    case HeldKind::zero:
    case HeldKind::none: break;
  }
  std::memset(into.data(), 0, into.size());
  co_return Result<void>{};
}

/// Whoever overwrites a block that a checkpoint needs holds it first. So what is found for the
/// checkpoint last changed in its epoch or before, or the hold of what it was has been damaged.
/// Epochs up to the last recovery's say nothing: it gives them to blocks that nobody wrote (rule
/// 2).
Result<void> Engine::check_as_of(CheckpointView view, BlockIndex block, MapWord word) const {
  if (word.epoch() <= std::max(view.epoch, map_->state().recovered)) [[likely]]
    return {};
  return failure(ErrorKind::corrupt,
                 fmt::format("the holds of '{}' lack block {} as it was at the checkpoint; 'berth "
                             "volume check' says what is lost",
                             environment_.directory.path(), block));
}

Task<Result<void>> Engine::read_as_of(CheckpointView view, std::uint64_t offset,
                                      MutableBytes into) {
  while (!into.empty()) {
    const BlockIndex first = block_of(offset);
    std::shared_ptr<HoldLayer> layer;  // kept: it may be given up while we read
    const HeldBlock held = find_held(view.epoch, first, &layer);
    const std::uint64_t end = offset + into.size();
    if (held.kind != HeldKind::none) {
      CO_TRY(check_as_of(view, first, held.word));
      const std::size_t length = std::min(end, block_offset(first + 1)) - offset;
      CO_TRY(co_await read_held(*layer, held, first, offset - block_offset(first),
                                into.first(length)));
      offset += length;
      into = into.subspan(length);
      continue;
    }
    // A run that nobody holds is live. Whoever overwrites a block of it meanwhile holds it first,
    // so a second look at the index tells which blocks to read again.
    BlockIndex stop = first + 1;
    while (block_offset(stop) < end && find_held(view.epoch, stop, nullptr).kind == HeldKind::none)
      ++stop;
    const std::size_t length = std::min(end, block_offset(stop)) - offset;
    const MutableBytes part = into.first(length);
    CO_TRY(co_await read_live(offset, part));
    for (BlockIndex block = first; block < stop && !sabotaged(Sabotage::trust_first_look);
         ++block) {
      const HeldBlock appeared = find_held(view.epoch, block, &layer);
      const bool live = appeared.kind == HeldKind::none;
      CO_TRY(check_as_of(view, block, live ? live_->word(block) : appeared.word));
      if (live) continue;
      const std::uint64_t start = std::max(offset, block_offset(block));
      const std::uint64_t block_end = std::min(offset + length, block_offset(block + 1));
      CO_TRY(co_await read_held(*layer, appeared, block, start - block_offset(block),
                                part.subspan(start - offset, block_end - start)));
    }
    offset += length;
    into = into.subspan(length);
  }
  co_return Result<void>{};
}

// --- The reader of one checkpoint.

class EngineCheckpointReader final : public CheckpointReader {
 public:
  EngineCheckpointReader(Engine& engine, CheckpointInfo info)
      : engine_(engine), info_(std::move(info)) {
    ++engine_.readers_[info_.name];
  }
  EngineCheckpointReader(const EngineCheckpointReader&) = delete;
  EngineCheckpointReader& operator=(const EngineCheckpointReader&) = delete;
  ~EngineCheckpointReader() override { --engine_.readers_[info_.name]; }

  const CheckpointInfo& info() const override { return info_; }

  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    CO_TRY(check(offset, into.size()));
    auto done =
        co_await engine_.read_as_of({.epoch = info_.epoch, .size = info_.size}, offset, into);
    CO_TRY(still_there());  // given up while we read? Then what we read may be newer.
    co_return done;
  }

  Task<Result<std::vector<AllocationExtent>>> allocation(std::uint64_t offset, std::uint64_t length,
                                                         std::size_t extents_max) override {
    CO_TRY(check(offset, length));
    std::vector<AllocationExtent> extents;
    const std::uint64_t end = offset + length;
    while (offset < end) {
      const BlockIndex block = engine_.block_of(offset);
      const std::uint64_t block_end = std::min(end, engine_.block_offset(block + 1));
      const HeldBlock held = engine_.find_held(info_.epoch, block, nullptr);
      AllocationExtent extent{.length = block_end - offset};
      if (held.kind == HeldKind::none) {
        auto live = CO_TRY(co_await engine_.allocation(offset, block_end - offset, 1));
        extent = live.front();
      } else {
        extent.hole = extent.zero = held.kind == HeldKind::zero;
      }
      offset += extent.length;
      if (!extents.empty() && extents.back().hole == extent.hole &&
          extents.back().zero == extent.zero) {
        extents.back().length += extent.length;
      } else {
        if (extents.size() == extents_max) break;
        extents.push_back(extent);
      }
    }
    co_return extents;
  }

 private:
  Result<void> still_there() const {
    const Checkpoint* checkpoint = engine_.map_->state().find_checkpoint(info_.name);
    if (checkpoint != nullptr && !checkpoint->lost) return {};
    return failure(ErrorKind::precondition,
                   fmt::format("the checkpoint '{}' was given up: its data is gone", info_.name));
  }
  Result<void> check(std::uint64_t offset, std::uint64_t length) const {
    if (offset > info_.size || length > info_.size - offset) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{} bytes at offset {} are not within the checkpoint's {}", length,
                                 offset, info_.size));
    }
    return still_there();
  }

  Engine& engine_;
  CheckpointInfo info_;
};

Result<std::unique_ptr<CheckpointReader>> Engine::read_checkpoint(const std::string& name) {
  const Checkpoint* checkpoint = map_->state().find_checkpoint(name);
  if (checkpoint == nullptr)
    return failure(ErrorKind::not_found, fmt::format("there is no checkpoint '{}'", name));
  if (checkpoint->provisional) {
    return failure(ErrorKind::precondition,
                   fmt::format("the group of checkpoint '{}' is not decided yet", name));
  }
  if (checkpoint->lost) {
    return failure(ErrorKind::precondition,
                   fmt::format("the checkpoint '{}' was given up: its data is gone", name));
  }
  return std::make_unique<EngineCheckpointReader>(*this, describe(*checkpoint));
}

// --- Changes.

/// The epoch of `since`, if it can be vouched for (rule 9).
Result<Epoch> Engine::epoch_for_changes(const ChangesRequest& request, bool* exact) const {
  const VolumeState& state = map_->state();
  Epoch epoch = 0;
  Id128 nonce;
  bool provisional = false;
  if (const Refpoint* refpoint = state.find_refpoint(request.since); refpoint != nullptr) {
    epoch = refpoint->epoch;
    nonce = refpoint->nonce;
    provisional = refpoint->provisional;
  } else if (const Checkpoint* checkpoint = state.find_checkpoint(request.since);
             checkpoint != nullptr) {
    epoch = checkpoint->epoch;
    nonce = checkpoint->nonce;
    provisional = checkpoint->provisional;
  } else {
    return failure(ErrorKind::full_backup_required,
                   fmt::format("this volume has no reference point '{}'", request.since));
  }
  if (request.nonce && *request.nonce != nonce && !sabotaged(Sabotage::ignore_nonce)) {
    return failure(ErrorKind::full_backup_required,
                   fmt::format("the reference point '{}' is another one than the one asked for",
                               request.since));
  }
  if (provisional) {
    return failure(ErrorKind::precondition,
                   fmt::format("the group of '{}' is not decided yet", request.since));
  }
  if (epoch < state.vouched_since) {
    return failure(ErrorKind::full_backup_required,
                   fmt::format("changes since '{}' are not known: {} after it", request.since,
                               to_string(state.void_reason)));
  }
  *exact = epoch >= state.recovered;
  return epoch;
}

Task<Result<ChangesPage>> Engine::changes(ChangesRequest request) {
  ChangesPage page;
  const Epoch since = CO_TRY(epoch_for_changes(request, &page.exact));
  std::optional<CheckpointView> until;
  if (!request.until.empty()) {
    const Checkpoint* checkpoint = map_->state().find_checkpoint(request.until);
    if (checkpoint == nullptr) {
      co_return failure(ErrorKind::not_found,
                        fmt::format("there is no checkpoint '{}'", request.until));
    }
    if (checkpoint->lost) {
      co_return failure(ErrorKind::precondition,
                        fmt::format("the checkpoint '{}' was given up", request.until));
    }
    if (checkpoint->epoch < since) {
      co_return failure(
          ErrorKind::precondition,
          fmt::format("the checkpoint '{}' is older than '{}'", request.until, request.since));
    }
    until = CheckpointView{.epoch = checkpoint->epoch, .size = checkpoint->size};
  }
  const std::uint64_t volume_end = until ? until->size : size();
  const std::uint64_t start = std::min(request.offset, volume_end);
  const std::uint64_t end = start + std::min(request.length, volume_end - start);
  page.next_offset = start;
  std::uint64_t scanned = 0;
  while (page.next_offset < end) {
    const std::uint64_t map_page = page_of(block_of(page.next_offset));
    const std::uint64_t page_end = std::min(end, block_offset((map_page + 1) * words_per_page));
    collect_changes(map_page, since, until, page.next_offset, page_end, request.extents_max, page);
    if (page.next_offset < page_end) {
      page.complete = false;  // extents_max is reached
      co_return page;
    }
    if (++scanned % pages_between_yields == 0) {
      co_await loop_.yield();
      // The volume may have shrunk, the checkpoint gone, while others ran.
      if (end > size() || (until && map_->state().find_checkpoint(request.until) == nullptr)) {
        co_return failure(ErrorKind::precondition,
                          "the volume or the checkpoint has changed under the query");
      }
    }
  }
  co_return page;
}

/// The changed blocks of one map page within [start, end), both bytes; synchronous, so of one
/// instant.
void Engine::collect_changes(std::uint64_t page, Epoch since, std::optional<CheckpointView> until,
                             std::uint64_t start, std::uint64_t end, std::size_t extents_max,
                             ChangesPage& into) const {
  std::vector<const HoldLayer*> holders;
  if (until) {
    for (const auto& layer : layers_) {
      if (layer->epoch() >= until->epoch && layer->touches_page(page))
        holders.push_back(layer.get());
    }
  }
  if (holders.empty() && live_->page(page).epoch_max <= since) {
    into.next_offset = end;
    return;
  }
  const auto epoch_as_of = [&](BlockIndex block) {
    for (const HoldLayer* layer : holders) {
      const HeldBlock held = layer->find(block);
      if (held.kind != HeldKind::none) return held.word.epoch();
    }
    const Epoch live = live_->word(block).epoch();
    // A live epoch beyond `until` without a hold comes from a recovery: it stays, and over-reports
    // (rule 1).
    if (until && live > until->epoch && sabotaged(Sabotage::cap_live_epochs)) return Epoch{0};
    return live;
  };
  const BlockIndex last = block_of(end - 1);
  for (BlockIndex block = block_of(start); block <= last; ++block) {
    if (epoch_as_of(block) <= since) continue;
    const std::uint64_t from = std::max(start, block_offset(block));
    const std::uint64_t to = std::min(end, block_offset(block + 1));
    if (!into.extents.empty() && into.extents.back().offset + into.extents.back().length == from) {
      into.extents.back().length += to - from;
    } else if (into.extents.size() == extents_max) {
      into.next_offset = from;
      return;
    } else {
      into.extents.push_back({.offset = from, .length = to - from});
    }
  }
  into.next_offset = end;
}

}  // namespace berth::disk
