// vm_checkpoint.* and vm_refpoint.*

#include <nlohmann/json.hpp>

#include "control/machine_checkpoints.h"
#include "control/machine_steps.h"
#include "control/machines.h"
#include "control/operations.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

std::string target_of(const Json& params, const char* point) {
  return text(params, "machine") + '@' + text(params, point);
}

Async<Result<Json>> checkpoint_create(Services& services, Json params) {
  CheckpointWish wish{.machine = text(params, "machine"),
                      .name = text(params, "name"),
                      .memory = params.value("memory", false),
                      .quiesce = !params.value("no_quiesce", false),
                      .application = params.value("require_application", false),
                      .durability = params.value("durability", "durable")};
  if (params.contains("freeze_limit_s"))
    wish.freeze_limit = std::chrono::seconds(std::min<std::uint64_t>(
        params["freeze_limit_s"].get<std::uint64_t>(),
        std::chrono::duration_cast<std::chrono::seconds>(machine::freeze_limit_max).count()));
  CO_TRY(co_await services.machines.record(wish.machine));
  co_return co_await services.jobs.start(
      {.kind = "vm_checkpoint.create", .target = target_of(params, "name"), .volume = {}},
      [&services, wish](std::shared_ptr<JobProgress> job) {
        return make_checkpoint(services, wish, std::move(job));
      });
}

Async<Result<Json>> checkpoint_list(Services& services, Json params) {
  Json list = CO_TRY(co_await machine_checkpoints(services, text(params, "machine")));
  co_return Json{{"checkpoints", std::move(list)}};
}

Async<Result<Json>> checkpoint_info(Services& services, Json params) {
  const std::string machine = text(params, "machine");
  CO_TRY(co_await services.machines.record(machine));
  const machine::MachinePoints points({services.state_dir}, machine);
  const auto checkpoint = CO_TRY(points.checkpoint(text(params, "checkpoint")));
  co_return shown_checkpoint(checkpoint, machine, points.current());
}

Async<Result<Json>> checkpoint_revert(Services& services, Json params) {
  const RevertWish wish{.machine = text(params, "machine"),
                        .checkpoint = text(params, "checkpoint"),
                        .disks_only = params.value("disks_only", false),
                        .force = params.value("force", false)};
  CO_TRY(co_await checkpoint_info(services, params));
  constexpr auto run = [](Services& all, RevertWish what,
                          std::shared_ptr<JobProgress> job) -> Async<Result<Json>> {
    CO_TRY(co_await revert_machine(all, what, std::move(job)));
    co_return co_await shown_machine(all, what.machine);
  };
  co_return co_await services.jobs.start(
      {.kind = "vm_checkpoint.revert", .target = target_of(params, "checkpoint"), .volume = {}},
      [&services, wish, run](std::shared_ptr<JobProgress> job) {
        return run(services, wish, std::move(job));
      });
}

Async<Result<Json>> checkpoint_export(Services& services, Json params) {
  CO_TRY(co_await checkpoint_info(services, params));
  co_return co_await services.jobs.start(
      {.kind = "vm_checkpoint.export", .target = target_of(params, "checkpoint"), .volume = {}},
      [&services, params](std::shared_ptr<JobProgress> job) {
        return export_checkpoint(services, text(params, "machine"), text(params, "checkpoint"),
                                 text(params, "to"), text(params, "since"), std::move(job));
      });
}

Async<Result<Json>> checkpoint_delete(Services& services, Json params) {
  CO_TRY(co_await delete_checkpoint(services, text(params, "machine"), text(params, "checkpoint")));
  co_return Json::object();
}

Async<Result<Json>> checkpoint_convert(Services& services, Json params) {
  co_return co_await convert_checkpoint(services, text(params, "machine"),
                                        text(params, "checkpoint"), text(params, "refpoint"));
}

Async<Result<Json>> refpoint_list(Services& services, Json params) {
  Json list = CO_TRY(co_await machine_refpoints(services, text(params, "machine")));
  co_return Json{{"refpoints", std::move(list)}};
}

Async<Result<Json>> refpoint_delete(Services& services, Json params) {
  CO_TRY(co_await delete_refpoint(services, text(params, "machine"), text(params, "refpoint")));
  co_return Json::object();
}

}  // namespace

HandlerTable machine_point_handlers() {
  return {
      {"vm_checkpoint.create", checkpoint_create},   {"vm_checkpoint.list", checkpoint_list},
      {"vm_checkpoint.info", checkpoint_info},       {"vm_checkpoint.revert", checkpoint_revert},
      {"vm_checkpoint.export", checkpoint_export},   {"vm_checkpoint.delete", checkpoint_delete},
      {"vm_checkpoint.convert", checkpoint_convert}, {"vm_refpoint.list", refpoint_list},
      {"vm_refpoint.delete", refpoint_delete}};
}

}  // namespace berth::control
