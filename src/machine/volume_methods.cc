#include "machine/volume_methods.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/fault_point.h"
#include "machine/checkpoint_export.h"
#include "machine/control_messages.h"
#include "machine/volume_directory.h"
#include "machine/volume_store.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t populate_step_max = 16 * MiB;  // bytes between two looks at the clock
constexpr std::uint64_t populate_steps_a_second = 10;  // under a rate limit
constexpr Duration populate_sleep_max = std::chrono::milliseconds(100);  // until a cancel is seen

Json nothing() { return Json::object(); }

/// For who waits for nothing but that writes go on: a guest that is frozen, say.
std::function<void()> tell_writes_go_on(ControlCall& call) {
  return [&call] { call.report({.phase = std::string(phase_writes_go_on)}); };
}

/// Waits until `copied` bytes are due at `rate` bytes a second.
Task<Result<void>> keep_rate(Loop& loop, ControlCall& call, Instant start, std::uint64_t copied,
                             std::uint64_t rate) {
  const double seconds = static_cast<double>(copied) / static_cast<double>(rate);
  const Instant due =
      start + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  while (loop.now() < due) {
    CO_TRY(call.check());
    co_await loop.sleep(std::min(due - loop.now(), populate_sleep_max));
  }
  co_return Result<void>{};
}

}  // namespace

VolumeMethods::VolumeMethods(UringLoop& loop, ControlServer& server, Options options)
    : loop_(loop), options_(std::move(options)), ended_(loop) {
  add(server, "volume.info", &VolumeMethods::info);
  add(server, "volume.resize", &VolumeMethods::resize);
  add(server, "volume.populate", &VolumeMethods::populate);
  add(server, "checkpoint.create", &VolumeMethods::checkpoint_create);
  add(server, "checkpoint.list", &VolumeMethods::checkpoint_list);
  add(server, "checkpoint.delete", &VolumeMethods::checkpoint_delete);
  add(server, "checkpoint.revert", &VolumeMethods::checkpoint_revert);
  add(server, "checkpoint.convert", &VolumeMethods::checkpoint_convert);
  add(server, "checkpoint.export", &VolumeMethods::checkpoint_export);
  add(server, "refpoint.create", &VolumeMethods::refpoint_create);
  add(server, "refpoint.list", &VolumeMethods::refpoint_list);
  add(server, "refpoint.delete", &VolumeMethods::refpoint_delete);
  add(server, "changes", &VolumeMethods::changes);
  add(server, "cut.begin", &VolumeMethods::cut_begin);
  add(server, "cut.commit", &VolumeMethods::cut_commit);
  add(server, "cut.abort", &VolumeMethods::cut_abort);
  add(server, "group.settle", &VolumeMethods::group_settle);
}

void VolumeMethods::add(ControlServer& server, const char* name, Method method) {
  server.add(name, [this, method](ControlCall& call) { return guarded(method, call); });
}

void VolumeMethods::open(disk::Volume& volume) { volume_ = &volume; }

Task<> VolumeMethods::close() {
  volume_ = nullptr;
  while (running_ > 0) co_await ended_.wait();
}

Task<Result<Json>> VolumeMethods::guarded(Method method, ControlCall& call) {
  if (volume_ == nullptr) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("the volume '{}' is not open: it is being opened or closed", options_.volume));
  }
  ++running_;
  auto result = co_await (this->*method)(call);
  --running_;
  ended_.notify_all();
  co_return result;
}

Task<Result<Json>> VolumeMethods::info(ControlCall& /*call*/) {
  co_return encode(volume_->info(), options_.volume);
}

Task<Result<Json>> VolumeMethods::resize(ControlCall& call) {
  disk::Volume& volume = *volume_;
  const std::uint64_t size = CO_TRY(required_number_param(call.params(), "size"));
  CO_TRY(co_await volume.resize(size));
  refresh_summary(options_.state, options_.volume, volume.info());
  co_return nothing();
}

Task<Result<Json>> VolumeMethods::populate(ControlCall& call) {
  const std::uint64_t rate = CO_TRY(number_param(call.params(), "rate")).value_or(0);
  if (std::exchange(populating_, true)) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("the volume '{}' is being populated already", options_.volume));
  }
  auto result = co_await populate_all(call, rate);
  populating_ = false;
  co_return result;
}

Task<Result<Json>> VolumeMethods::populate_all(ControlCall& call, std::uint64_t rate) {
  disk::Volume& volume = *volume_;
  std::uint64_t step = populate_step_max;
  if (rate > 0) {
    step = std::clamp<std::uint64_t>(rate / populate_steps_a_second, volume.info().block_size,
                                     populate_step_max);
  }
  const Instant start = loop_.now();
  std::uint64_t copied = 0;
  while (const std::uint64_t now = CO_TRY(co_await volume.populate(step))) {
    copied += now;
    call.report({.phase = "copy", .done = copied});
    CO_TRY(call.check());
    if (rate > 0) CO_TRY(co_await keep_rate(loop_, call, start, copied, rate));
    co_await loop_.yield();
  }
  co_return Json{{"copied", copied}};
}

Task<Result<Json>> VolumeMethods::checkpoint_create(ControlCall& call) {
  auto cut = CO_TRY(decode_checkpoint_create(call.params()));
  fault_point("one-volume.asked");
  const auto outcome = CO_TRY(co_await volume_->cut(std::move(cut), tell_writes_go_on(call)));
  fault_point("one-volume.cut");
  co_return encode(outcome);
}

Task<Result<Json>> VolumeMethods::checkpoint_list(ControlCall& call) {
  const std::uint64_t offset = CO_TRY(number_param(call.params(), "offset")).value_or(0);
  co_return encode_page("checkpoints", volume_->checkpoints(), offset);
}

/// in_use while NBD clients or other volumes read the checkpoint.
Result<void> VolumeMethods::check_not_lent(const std::string& checkpoint) const {
  const auto reader = options_.readers->find(checkpoint);
  if (reader != options_.readers->end()) {
    return failure(ErrorKind::in_use,
                   fmt::format("the checkpoint '{}' is being read over NBD ({} clients)",
                               checkpoint, reader->second));
  }
  const auto dependents = dependents_of(options_.state, options_.volume, checkpoint);
  if (dependents.empty()) return {};
  return failure(ErrorKind::in_use, fmt::format("the volume '{}' stands on the checkpoint '{}'",
                                                dependents.front(), checkpoint));
}

Task<Result<Json>> VolumeMethods::checkpoint_delete(ControlCall& call) {
  disk::Volume& volume = *volume_;
  std::string name = CO_TRY(required_text_param(call.params(), "name"));
  CO_TRY(check_not_lent(name));
  fault_point("deleting.volume-asked");
  CO_TRY(co_await volume.release_checkpoint(std::move(name)));
  fault_point("deleting.volume-done");
  co_return nothing();
}

Task<Result<Json>> VolumeMethods::checkpoint_revert(ControlCall& call) {
  disk::Volume& volume = *volume_;
  std::string name = CO_TRY(required_text_param(call.params(), "name"));
  fault_point("reverting.volume-asked");
  CO_TRY(co_await volume.revert(std::move(name)));
  fault_point("reverting.volume-done");
  refresh_summary(options_.state, options_.volume, volume.info());
  co_return nothing();
}

Task<Result<Json>> VolumeMethods::checkpoint_convert(ControlCall& call) {
  disk::Volume& volume = *volume_;
  std::string name = CO_TRY(required_text_param(call.params(), "name"));
  std::string refpoint = CO_TRY(text_param(call.params(), "refpoint"));
  if (!refpoint.empty()) CO_TRY(check_point_name("reference point", refpoint));
  CO_TRY(check_not_lent(name));
  fault_point("converting.volume-asked");
  const auto made =
      CO_TRY(co_await volume.convert_checkpoint(std::move(name), std::move(refpoint)));
  fault_point("converting.volume-done");
  co_return encode(made);
}

Task<Result<Json>> VolumeMethods::checkpoint_export(ControlCall& call) {
  disk::Volume& volume = *volume_;
  auto request = CO_TRY(decode_checkpoint_export(call.params()));
  const auto outcome = CO_TRY(co_await export_checkpoint(loop_, volume, std::move(request), call));
  co_return Json{{"extents", outcome.extents}, {"bytes", outcome.bytes}, {"exact", outcome.exact}};
}

Task<Result<Json>> VolumeMethods::refpoint_create(ControlCall& call) {
  auto cut = CO_TRY(decode_refpoint_create(call.params()));
  co_return encode(CO_TRY(co_await volume_->cut(std::move(cut))));
}

Task<Result<Json>> VolumeMethods::refpoint_list(ControlCall& call) {
  const std::uint64_t offset = CO_TRY(number_param(call.params(), "offset")).value_or(0);
  co_return encode_page("refpoints", volume_->refpoints(), offset);
}

Task<Result<Json>> VolumeMethods::refpoint_delete(ControlCall& call) {
  std::string name = CO_TRY(required_text_param(call.params(), "name"));
  CO_TRY(co_await volume_->delete_refpoint(std::move(name)));
  fault_point("forgetting.volume-done");
  co_return nothing();
}

Task<Result<Json>> VolumeMethods::changes(ControlCall& call) {
  auto request = CO_TRY(decode_changes(call.params()));
  co_return encode(CO_TRY(co_await volume_->changes(std::move(request))));
}

Task<Result<Json>> VolumeMethods::cut_begin(ControlCall& call) {
  auto request = CO_TRY(decode_cut_begin(call.params()));
  fault_point("cutting.volume-asked");
  const auto ticket = CO_TRY(co_await volume_->begin_cut(std::move(request.cut), request.lease));
  fault_point("cutting.volume-closed");
  // Only who began it knows the ticket; and there is one open cut at a time, so one farewell does.
  call.when_client_goes([this, ticket] {
    if (volume_ != nullptr) volume_->abort_cut(ticket);
  });
  co_return Json{{"ticket", ticket.number}};
}

Task<Result<Json>> VolumeMethods::cut_commit(ControlCall& call) {
  const disk::CutTicket ticket{CO_TRY(required_number_param(call.params(), "ticket"))};
  fault_point("cutting.volume-told");
  const auto outcome = CO_TRY(co_await volume_->commit_cut(ticket, tell_writes_go_on(call)));
  fault_point("cutting.volume-cut");
  co_return encode(outcome);
}

Task<Result<Json>> VolumeMethods::cut_abort(ControlCall& call) {
  volume_->abort_cut({CO_TRY(required_number_param(call.params(), "ticket"))});
  co_return nothing();
}

Task<Result<Json>> VolumeMethods::group_settle(ControlCall& call) {
  const auto request = CO_TRY(decode_group_settle(call.params()));
  fault_point("cutting.volume-decided");
  CO_TRY(co_await volume_->settle_group(request.group, request.committed));
  fault_point("cutting.volume-settled");
  co_return nothing();
}

}  // namespace berth::machine
