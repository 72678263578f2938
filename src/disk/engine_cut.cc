// Cuts, and how checkpoints and reference points come and go.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "disk/engine.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

constexpr Duration lease_max = std::chrono::seconds(60);

Result<void> check_name(std::string_view what, const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-' || c == ':' || c == '+';
  };
  if (!name.empty() && name.size() <= name_length_max && std::ranges::all_of(name, allowed))
    return {};
  return failure(
      ErrorKind::invalid_argument,
      fmt::format("'{}' cannot be the name of a {}: 1 to {} letters, digits and . _ - : +", name,
                  what, name_length_max));
}

std::unexpected<Error> no_checkpoint(const std::string& name) {
  return failure(ErrorKind::not_found, fmt::format("there is no checkpoint '{}'", name));
}

}  // namespace

// --- The gate (rule 5).

Task<> Engine::close_gate() {
  gate_closed_ = true;
  if (sabotaged(Sabotage::cut_without_drain)) co_return;
  while (mutations_ > 0) co_await drained_.wait();
}

void Engine::open_gate() {
  gate_closed_ = false;
  gate_opened_.notify_all();
}

/// Whether points may come and go: not while a resize or a revert is under way, or waits for the
/// next open.
Result<void> Engine::may_change_points() const {
  if (unfinished_) return failure(Error(*unfinished_));
  if (exclusive_) return failure(ErrorKind::in_use, "the volume is being resized or reverted");
  return {};
}

// --- Cuts.

Task<Result<void>> Engine::check_cut(const CutRequest& request) {
  if (request.checkpoint.empty() && request.refpoint.empty()) {
    co_return failure(ErrorKind::invalid_argument,
                      "a cut makes a checkpoint, a reference point, or both");
  }
  if (!request.checkpoint.empty()) CO_TRY(check_name("checkpoint", request.checkpoint));
  if (!request.refpoint.empty()) CO_TRY(check_name("reference point", request.refpoint));
  if (map_->state().find_checkpoint(request.checkpoint) != nullptr) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a checkpoint '{}' already", request.checkpoint));
  }
  if (map_->state().find_refpoint(request.refpoint) != nullptr) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a reference point '{}' already", request.refpoint));
  }
  if (cut_busy_) co_return failure(ErrorKind::in_use, "another cut of this volume is under way");
  CO_TRY(may_change_points());
  if (live_->epoch() >= epoch_max)
    co_return failure(ErrorKind::limit, "the volume has used up its epochs");
  if (sync_failure_) co_return failure(Error(*sync_failure_));
  co_return Result<void>{};
}

Task<Result<CutTicket>> Engine::begin_cut(CutRequest request, Duration lease) {
  CO_TRY(co_await check_cut(request));
  cut_busy_ = true;
  OpenCut cut{.number = ++cut_numbers_, .request = std::move(request), .layer = nullptr};
  if (!cut.request.checkpoint.empty()) {
    auto layer = co_await prepare_layer();
    if (!layer) {
      cut_busy_ = false;
      co_return failure(std::move(layer).error());
    }
    cut.layer = std::move(*layer);
  }
  cut.gate_closed_at = loop_.now();
  const std::uint64_t number = cut.number;
  open_cut_ = std::move(cut);
  co_await close_gate();
  tasks_.spawn(watch_lease(number, std::min(lease, lease_max)));
  co_return CutTicket{number};
}

/// The layer must be there when the first write comes through the gate, and recorded if an older
/// checkpoint will need what is held in it.
Task<Result<std::shared_ptr<HoldLayer>>> Engine::prepare_layer() {
  const HoldLayer::Identity identity{.volume = map_->superblock().volume,
                                     .id = next_layer_++,
                                     .epoch = live_->epoch(),
                                     .block_size = block_size_};
  auto layer = CO_TRY(co_await HoldLayer::create(loop_, *holds_, identity));
  CO_TRY(holds_->sync());
  if (newest_checkpoint_ != 0)
    CO_TRY(co_await map_->append(LayerEvent{.layer = identity.id, .epoch = identity.epoch}));
  co_return layer;
}

/// The layer of a cut that was called off before its epoch ended: nothing was held in it.
Task<> Engine::withdraw_layer(LayerId id) {
  const auto same = [id](const Layer& layer) { return layer.id == id; };
  Result<void> recorded;
  if (std::ranges::any_of(map_->state().layers, same)) {
    recorded = co_await map_->append(LayerEvent{.layer = id, .present = false});
  }
  if (recorded && !map_->failed()) co_await remove_layer_file(id);
  cut_busy_ = false;
}

Task<> Engine::watch_lease(std::uint64_t number, Duration lease) {
  // In steps, so that a lease of a minute does not keep a closing volume waiting for it.
  constexpr Duration step = std::chrono::milliseconds(20);
  const Instant end = loop_.now() + lease;
  while (open_cut_ && open_cut_->number == number && loop_.now() < end) {
    co_await loop_.sleep(std::min(step, end - loop_.now()));
  }
  if (!open_cut_ || open_cut_->number != number) co_return;
  open_cut_->expired = true;
  open_gate();
}

void Engine::abort_cut(CutTicket ticket) {
  if (!open_cut_ || open_cut_->number != ticket.number) return;
  const OpenCut cut = *std::exchange(open_cut_, std::nullopt);
  if (!cut.expired) open_gate();
  if (cut.layer == nullptr) {
    cut_busy_ = false;
  } else {
    tasks_.spawn(withdraw_layer(cut.layer->id()));
  }
}

Task<Result<CutOutcome>> Engine::commit_cut(CutTicket ticket, std::function<void()> writes_go_on) {
  if (!open_cut_ || open_cut_->number != ticket.number) {
    co_return failure(ErrorKind::not_found, "no such cut is open");
  }
  if (open_cut_->expired && !sabotaged(Sabotage::ignore_expired_lease)) {
    abort_cut(ticket);
    co_return failure(ErrorKind::timed_out,
                      "the cut's lease has expired: writes have gone on since");
  }
  OpenCut cut = *std::exchange(open_cut_, std::nullopt);

  // The cut itself: from here on every write is in the next epoch.
  const Epoch epoch = live_->epoch();
  live_->set_epoch(epoch + 1);
  if (cut.layer != nullptr) {
    layers_.push_back(cut.layer);
    newest_checkpoint_ = epoch;
    cut_in_record_ = Checkpoint{.name = cut.request.checkpoint,
                                .epoch = epoch,
                                .nonce = {},
                                .durability = cut.request.durability,
                                .group = {}};
  }
  const Duration gate_closed = loop_.now() - cut.gate_closed_at;
  open_gate();
  if (writes_go_on) writes_go_on();

  auto outcome = co_await record_cut(std::move(cut), epoch, gate_closed);
  // Whether a record whose sync has failed counts, only the next open can tell. Until then its
  // checkpoint may turn out to exist, so its layer stays, and holds.
  if (map_->failed()) co_return outcome;
  cut_in_record_.reset();
  cut_busy_ = false;
  refresh_layers();
  co_return outcome;
}

/// Neither readable nor acknowledged before the data, the map that it needs and the record are
/// durable.
Task<Result<CutOutcome>> Engine::record_cut(OpenCut cut, Epoch epoch, Duration gate_closed) {
  CO_TRY(co_await flush_shared());
  const Id128 nonce = environment_.random.id();
  const auto now_ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(loop_.wall_time().time_since_epoch());
  CO_TRY(co_await map_->append(CutEvent{.epoch = epoch,
                                        .nonce = nonce,
                                        .checkpoint = cut.request.checkpoint,
                                        .refpoint = cut.request.refpoint,
                                        .durability = cut.request.durability,
                                        .layer = cut.layer == nullptr ? 0 : cut.layer->id(),
                                        .created_ms = now_ms.count(),
                                        .group = cut.request.group}));
  CutOutcome outcome{.epoch = epoch,
                     .gate_closed = gate_closed,
                     .checkpoint = std::nullopt,
                     .refpoint = std::nullopt};
  if (const auto* checkpoint = map_->state().find_checkpoint(cut.request.checkpoint);
      checkpoint != nullptr) {
    outcome.checkpoint = describe(*checkpoint);
  }
  if (const auto* refpoint = map_->state().find_refpoint(cut.request.refpoint);
      refpoint != nullptr) {
    outcome.refpoint = describe(*refpoint);
  }
  co_return outcome;
}

Task<Result<void>> Engine::settle_group(Id128 group, bool committed) {
  CO_TRY(co_await map_->append(SettleEvent{.group = group, .committed = committed}));
  refresh_layers();
  co_return Result<void>{};
}

// --- Layers (rule 7).

bool Engine::layer_must_be_durable(const HoldLayer& layer) const {
  const bool in_record = cut_in_record_ && cut_in_record_->durability == Durability::durable &&
                         cut_in_record_->epoch <= layer.epoch();
  return in_record || map_->state().layer_is_durable(layer.epoch());
}

/// Follows the recorded state: layers that nobody needs any more go, in the background.
void Engine::refresh_layers() {
  if (map_->failed()) return;
  const VolumeState& state = map_->state();
  newest_checkpoint_ = cut_in_record_ ? cut_in_record_->epoch : 0;
  for (const Checkpoint& checkpoint : state.checkpoints) {
    if (!checkpoint.lost) newest_checkpoint_ = std::max(newest_checkpoint_, checkpoint.epoch);
  }
  const auto needed = [&](const std::shared_ptr<HoldLayer>& layer) {
    const auto same = [&layer](const Layer& one) { return one.id == layer->id(); };
    return std::ranges::any_of(state.layers, same) ||
           (cut_in_record_ && cut_in_record_->epoch == layer->epoch());
  };
  std::erase_if(layers_, [&](const std::shared_ptr<HoldLayer>& layer) {
    if (needed(layer)) return false;
    tasks_.spawn(remove_layer_file(layer->id()));
    return true;
  });
}

/// Unlinking a large file takes the file system a while: elsewhere.
Task<> Engine::remove_layer_file(LayerId id) {
  Directory* holds = holds_.get();
  co_await offload(loop_, [holds, id] { (void)holds->remove(HoldLayer::file_name(id)); });
}

/// The disk is full: the layers that no durable checkpoint needs go, and the checkpoints with them.
/// An error if there are none.
Task<Result<void>> Engine::give_up_volatile_holds() {
  std::vector<std::string> lost;
  for (const Checkpoint& checkpoint : map_->state().checkpoints) {
    if (checkpoint.lost) continue;
    if (checkpoint.durability == Durability::durable) break;
    lost.push_back(checkpoint.name);
  }
  if (lost.empty())
    co_return failure(ErrorKind::no_space,
                      "the disk is full, and only durable checkpoints hold data");
  for (std::size_t at = 0; at < lost.size(); at += lost_names_max) {
    const std::size_t count = std::min(lost_names_max, lost.size() - at);
    const auto first = lost.begin() + static_cast<std::ptrdiff_t>(at);
    CO_TRY(co_await map_->append(LostEvent{{first, first + static_cast<std::ptrdiff_t>(count)}}));
  }
  refresh_layers();
  for (const std::string& name : lost) {
    report(VolumeEvent::Kind::checkpoint_lost,
           fmt::format("the disk is full: the volatile checkpoint '{}' was given up", name));
  }
  co_return Result<void>{};
}

// --- Checkpoints.

CheckpointInfo Engine::describe(const Checkpoint& checkpoint) const {
  CheckpointInfo info{.name = checkpoint.name,
                      .epoch = checkpoint.epoch,
                      .durability = checkpoint.durability,
                      .size = checkpoint.size,
                      .created_ms = checkpoint.created_ms,
                      .held_bytes = 0,
                      .group = checkpoint.group,
                      .provisional = checkpoint.provisional,
                      .lost = checkpoint.lost};
  // A layer's space is counted for the newest checkpoint that needs it.
  Epoch next = epoch_max + 1;
  for (const Checkpoint& other : map_->state().checkpoints) {
    if (!other.lost && other.epoch > checkpoint.epoch) next = std::min(next, other.epoch);
  }
  for (const auto& layer : layers_) {
    if (layer->epoch() >= checkpoint.epoch && layer->epoch() < next)
      info.held_bytes += layer->bytes_used();
  }
  return info;
}

std::vector<CheckpointInfo> Engine::checkpoints() const {
  std::vector<CheckpointInfo> infos;
  for (const Checkpoint& checkpoint : map_->state().checkpoints)
    infos.push_back(describe(checkpoint));
  return infos;
}

Task<Result<void>> Engine::release_checkpoint(std::string name) {
  if (map_->state().find_checkpoint(name) == nullptr) co_return no_checkpoint(name);
  if (const auto readers = readers_.find(name); readers != readers_.end() && readers->second > 0) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("somebody is reading the checkpoint '{}'", name));
  }
  CO_TRY(may_change_points());
  CO_TRY(co_await map_->append(ReleaseEvent{name}));
  refresh_layers();
  co_return Result<void>{};
}

Task<Result<RefpointInfo>> Engine::convert_checkpoint(std::string name, std::string refpoint) {
  if (refpoint.empty()) refpoint = name;
  CO_TRY(check_name("reference point", refpoint));
  const Checkpoint* checkpoint = map_->state().find_checkpoint(name);
  if (checkpoint == nullptr) co_return no_checkpoint(name);
  if (checkpoint->provisional) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the group of checkpoint '{}' is not decided yet", name));
  }
  if (map_->state().find_refpoint(refpoint) != nullptr) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a reference point '{}' already", refpoint));
  }
  if (const auto readers = readers_.find(name); readers != readers_.end() && readers->second > 0) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("somebody is reading the checkpoint '{}'", name));
  }
  CO_TRY(may_change_points());
  CO_TRY(co_await map_->append(ConvertEvent{.checkpoint = name, .refpoint = refpoint}));
  refresh_layers();
  co_return describe(*map_->state().find_refpoint(refpoint));
}

// --- Reference points.

RefpointInfo Engine::describe(const Refpoint& refpoint) const {
  return {.name = refpoint.name,
          .volume = map_->volume(),
          .epoch = refpoint.epoch,
          .nonce = refpoint.nonce,
          .created_ms = refpoint.created_ms,
          .exact = refpoint.epoch >= map_->state().recovered,
          .group = refpoint.group,
          .provisional = refpoint.provisional};
}

std::vector<RefpointInfo> Engine::refpoints() const {
  std::vector<RefpointInfo> infos;
  for (const auto& [name, refpoint] : map_->state().refpoints) infos.push_back(describe(refpoint));
  return infos;
}

Task<Result<void>> Engine::delete_refpoint(std::string name) {
  if (map_->state().find_refpoint(name) == nullptr) {
    co_return failure(ErrorKind::not_found, fmt::format("there is no reference point '{}'", name));
  }
  co_return co_await map_->append(DeleteRefpointEvent{name});
}

}  // namespace berth::disk
