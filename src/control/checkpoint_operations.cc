// checkpoint.*

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/keeper_job.h"
#include "control/keeper_lists.h"
#include "control/machines.h"
#include "control/operations.h"
#include "control/point_operations.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

std::string target_of(const Json& params) {
  return fmt::format("{}@{}", text(params, "volume"), text(params, "checkpoint"));
}

Async<Result<Json>> checkpoint_create(Services& services, Json params) {
  co_return co_await make_cut(services, params["volumes"].get<std::vector<std::string>>(),
                              {.checkpoint = text(params, "name"),
                               .refpoint = text(params, "refpoint"),
                               .durability = params.value("durability", "durable")});
}

Async<Result<Json>> checkpoint_list(Services& services, Json params) {
  Json list = CO_TRY(co_await list_points(services, text(params, "volume"), PointKind::checkpoint));
  co_return Json{{"checkpoints", std::move(list)}};
}

Async<Result<Json>> checkpoint_info(Services& services, Json params) {
  co_return co_await find_point(services, text(params, "volume"), text(params, "checkpoint"),
                                PointKind::checkpoint);
}

Async<Result<Json>> checkpoint_revert(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  CO_TRY(co_await checkpoint_info(services, params));
  CO_TRY(co_await services.machines.check_disk_not_hibernated(volume));
  co_return co_await start_keeper_job(
      services, {.kind = "checkpoint.revert", .target = target_of(params), .volume = volume},
      "checkpoint.revert", {{"name", params["checkpoint"]}},
      [](const Json& /*answer*/) -> Result<Json> { return Json::object(); });
}

Async<Result<Json>> checkpoint_export(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  CO_TRY(co_await checkpoint_info(services, params));
  Json request = {{"name", params["checkpoint"]}, {"to", params["to"]}};
  for (const char* name : {"since", "nonce"}) {
    if (params.contains(name)) request[name] = params[name];
  }
  const auto make_result = [to = params["to"],
                            since = params.value("since", Json())](const Json& answer) {
    Json shown = answer;
    shown["path"] = to;
    shown["since"] = since;
    return pick("Export", shown);
  };
  co_return co_await start_keeper_job(
      services, {.kind = "checkpoint.export", .target = target_of(params), .volume = volume},
      "checkpoint.export", std::move(request), make_result);
}

Async<Result<Json>> checkpoint_delete(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const std::string checkpoint = text(params, "checkpoint");
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  CO_TRY(co_await keeper.call("checkpoint.delete", {{"name", checkpoint}}, {}));
  services.events.publish("checkpoint_deleted", {.volume = volume, .job = {}}, checkpoint);
  co_return Json::object();
}

}  // namespace

HandlerTable checkpoint_handlers() {
  return {{"checkpoint.create", checkpoint_create}, {"checkpoint.list", checkpoint_list},
          {"checkpoint.info", checkpoint_info},     {"checkpoint.revert", checkpoint_revert},
          {"checkpoint.export", checkpoint_export}, {"checkpoint.delete", checkpoint_delete}};
}

}  // namespace berth::control
