// What the records of the journal mean: VolumeState::apply.
#include <algorithm>

#include <fmt/format.h>

#include "disk/journal.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

auto by_name(const std::string& name) {
  return [&name](const Checkpoint& checkpoint) { return checkpoint.name == name; };
}

std::unexpected<Error> impossible(std::string_view what, const std::string& name) {
  return failure(ErrorKind::corrupt,
                 fmt::format("the journal {} '{}', which cannot be at this point", what, name));
}

}  // namespace

std::string_view to_string(VoidReason reason) {
  switch (reason) {
    case VoidReason::none: break;
    case VoidReason::data_file_changed:
      return "the data file was changed while the volume was closed";
    case VoidReason::pages_damaged: return "pages of the block map were damaged";
    case VoidReason::intents_missing:
      return "the block map's intents were damaged, and the machine had stopped";
    case VoidReason::records_missing: return "records of the block map's journal were missing";
    case VoidReason::copied: return "the volume became a copy of the one that they are of";
  }
  return "the volume has lost track of what changed";
}

void VolumeState::stop_vouching(Epoch since, VoidReason reason) {
  if (since <= vouched_since) return;
  vouched_since = since;
  void_reason = reason;
}

Result<void> VolumeState::apply(const JournalEvent& event) {
  return std::visit([this](const auto& one) { return on(one); }, event);
}

const Checkpoint* VolumeState::find_checkpoint(const std::string& name) const {
  const auto found = std::ranges::find_if(checkpoints, by_name(name));
  return found == checkpoints.end() ? nullptr : &*found;
}

Checkpoint* VolumeState::mutable_checkpoint(const std::string& name) {
  const auto found = std::ranges::find_if(checkpoints, by_name(name));
  return found == checkpoints.end() ? nullptr : &*found;
}

const Refpoint* VolumeState::find_refpoint(const std::string& name) const {
  const auto found = refpoints.find(name);
  return found == refpoints.end() ? nullptr : &found->second;
}

bool VolumeState::layer_is_durable(Epoch layer_epoch) const {
  return std::ranges::any_of(checkpoints, [layer_epoch](const Checkpoint& checkpoint) {
    return !checkpoint.lost && checkpoint.durability == Durability::durable &&
           checkpoint.epoch <= layer_epoch;
  });
}

void VolumeState::remove_checkpoint(const std::string& name) {
  const auto found = std::ranges::find_if(checkpoints, by_name(name));
  const Epoch epoch_of_it = found->epoch;
  checkpoints.erase(found);
  if (sabotaged(Sabotage::drop_layer_with_its_own)) {
    std::erase_if(layers, [epoch_of_it](const Layer& layer) { return layer.epoch == epoch_of_it; });
  }
  drop_needless_layers();
}

void VolumeState::drop_needless_layers() {
  std::erase_if(layers, [this](const Layer& layer) {
    return std::ranges::none_of(checkpoints, [&layer](const Checkpoint& checkpoint) {
      return !checkpoint.lost && checkpoint.epoch <= layer.epoch;
    });
  });
}

Result<void> VolumeState::on(const CutEvent& event) {
  // Two cuts of one epoch cannot be: each ends the epoch that it is of.
  if (event.epoch < epoch && !checkpoints.empty() && checkpoints.back().epoch >= event.epoch) {
    return impossible("cuts an epoch twice for", event.checkpoint);
  }
  if (!event.checkpoint.empty()) {
    if (find_checkpoint(event.checkpoint) != nullptr)
      return impossible("creates the checkpoint", event.checkpoint);
    checkpoints.push_back({.name = event.checkpoint,
                           .epoch = event.epoch,
                           .nonce = event.nonce,
                           .durability = event.durability,
                           .size = size,
                           .created_ms = event.created_ms,
                           .group = event.group,
                           .provisional = !event.group.is_nil()});
  }
  if (!event.refpoint.empty()) {
    if (find_refpoint(event.refpoint) != nullptr)
      return impossible("creates the reference point", event.refpoint);
    refpoints[event.refpoint] = {.name = event.refpoint,
                                 .epoch = event.epoch,
                                 .nonce = event.nonce,
                                 .size = size,
                                 .created_ms = event.created_ms,
                                 .group = event.group,
                                 .provisional = !event.group.is_nil()};
  }
  if (event.layer != 0) add_layer(event.layer, event.epoch);
  epoch = std::max(epoch, event.epoch + 1);
  return {};
}

Result<void> VolumeState::on(const ReleaseEvent& event) {
  if (find_checkpoint(event.checkpoint) == nullptr)
    return impossible("releases the checkpoint", event.checkpoint);
  remove_checkpoint(event.checkpoint);
  return {};
}

Result<void> VolumeState::on(const ConvertEvent& event) {
  const Checkpoint* checkpoint = find_checkpoint(event.checkpoint);
  if (checkpoint == nullptr) return impossible("converts the checkpoint", event.checkpoint);
  if (find_refpoint(event.refpoint) != nullptr)
    return impossible("creates the reference point", event.refpoint);
  refpoints[event.refpoint] = {.name = event.refpoint,
                               .epoch = checkpoint->epoch,
                               .nonce = checkpoint->nonce,
                               .size = checkpoint->size,
                               .created_ms = checkpoint->created_ms,
                               .group = checkpoint->group,
                               .provisional = checkpoint->provisional};
  remove_checkpoint(event.checkpoint);
  return {};
}

Result<void> VolumeState::on(const DeleteRefpointEvent& event) {
  if (refpoints.erase(event.refpoint) == 0)
    return impossible("deletes the reference point", event.refpoint);
  return {};
}

Result<void> VolumeState::on(const SettleEvent& event) {
  if (event.committed) {
    for (Checkpoint& checkpoint : checkpoints) {
      if (checkpoint.group == event.group) checkpoint.provisional = false;
    }
    for (auto& [name, refpoint] : refpoints) {
      if (refpoint.group == event.group) refpoint.provisional = false;
    }
    return {};
  }
  const auto undecided = [&event](const auto& point) {
    return point.group == event.group && point.provisional;
  };
  std::erase_if(checkpoints, undecided);
  std::erase_if(refpoints, [&undecided](const auto& entry) { return undecided(entry.second); });
  drop_needless_layers();
  return {};
}

Result<void> VolumeState::on(const OpenEvent& event) {
  clean = false;
  session = event.session;
  epoch = std::max(epoch, event.epoch);
  intents_before = event.intents_before;
  recovered = std::max(recovered, event.recovered);
  if (event.kind == OpenKind::power_loss || event.kind == OpenKind::foreign_data) {
    // Volatile holds did not survive, or the bytes that nobody held are not what they were.
    std::vector<std::string> gone;
    for (const Checkpoint& checkpoint : checkpoints) {
      if (event.kind == OpenKind::foreign_data || checkpoint.durability == Durability::volatile_) {
        gone.push_back(checkpoint.name);
      }
    }
    TRY(on(LostEvent{std::move(gone)}));
  }
  stop_vouching(event.vouched_since, event.void_reason);
  return {};
}

Result<void> VolumeState::on(const CloseEvent& event) {
  clean = true;
  data = event.data;
  page_versions = event.page_versions;
  epoch = std::max(epoch, event.epoch);
  return {};
}

Result<void> VolumeState::on(const ResizeEvent& event) {
  epoch = std::max(epoch, event.epoch);
  if (event.finished) {
    pending_resize.reset();
    return {};
  }
  if (event.size == 0 || event.size > volume_size_max)
    return impossible("resizes to", std::to_string(event.size));
  size = event.size;
  backing_limit = std::min(backing_limit, event.size);
  pending_resize = event;
  return {};
}

Result<void> VolumeState::on(const RevertEvent& event) {
  if (event.finished) {
    pending_revert.reset();
    return {};
  }
  if (find_checkpoint(event.checkpoint) == nullptr)
    return impossible("reverts to the checkpoint", event.checkpoint);
  // Its data must outlive a power loss now: half a revert without its source would be neither old
  // nor new.
  mutable_checkpoint(event.checkpoint)->durability = Durability::durable;
  pending_revert = event;
  return {};
}

void VolumeState::add_layer(LayerId id, Epoch layer_epoch) {
  next_layer = std::max(next_layer, id + 1);
  if (std::ranges::any_of(layers, [id](const Layer& layer) { return layer.id == id; })) return;
  layers.push_back({.id = id, .epoch = layer_epoch});
}

Result<void> VolumeState::on(const LayerEvent& event) {
  if (event.present) {
    add_layer(event.layer, event.epoch);
  } else {
    std::erase_if(layers, [&event](const Layer& layer) { return layer.id == event.layer; });
  }
  drop_needless_layers();
  return {};
}

Result<void> VolumeState::on(const LostEvent& event) {
  for (const std::string& name : event.checkpoints) {
    if (Checkpoint* checkpoint = mutable_checkpoint(name); checkpoint != nullptr)
      checkpoint->lost = true;
    if (pending_revert && pending_revert->checkpoint == name) pending_revert.reset();
  }
  drop_needless_layers();
  return {};
}

/// Nothing was written, so the epoch goes on: every point so far is of one before it.
Result<void> VolumeState::on(const IdentityEvent& event) {
  volume = event.volume;
  data = event.data;
  if (event.lost) {
    LostEvent all;
    for (const Checkpoint& checkpoint : checkpoints) all.checkpoints.push_back(checkpoint.name);
    TRY(on(all));
  }
  stop_vouching(event.vouched_since, event.void_reason);
  return {};
}

}  // namespace berth::disk
