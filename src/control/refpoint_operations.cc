// refpoint.* and changes.*

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/keeper_lists.h"
#include "control/operations.h"
#include "control/point_operations.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

constexpr std::string_view file_format = "berth-refpoint";
constexpr std::uint64_t file_version = 1;

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Async<Result<Json>> refpoint_create(Services& services, Json params) {
  co_return co_await make_cut(
      services, params["volumes"].get<std::vector<std::string>>(),
      {.checkpoint = {}, .refpoint = text(params, "name"), .durability = "durable"});
}

Async<Result<Json>> refpoint_convert(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const std::string checkpoint = text(params, "checkpoint");
  const std::string refpoint = params.value("refpoint", checkpoint);
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  const Json made = CO_TRY(co_await keeper.call(
      "checkpoint.convert", {{"name", checkpoint}, {"refpoint", refpoint}}, {}));
  services.events.publish("checkpoint_converted", {.volume = volume, .job = {}},
                          fmt::format("{} is the reference point {}", checkpoint, refpoint));
  co_return shown_refpoint(volume, made);
}

Async<Result<Json>> refpoint_list(Services& services, Json params) {
  Json list = CO_TRY(co_await list_points(services, text(params, "volume"), PointKind::refpoint));
  co_return Json{{"refpoints", std::move(list)}};
}

Async<Result<Json>> refpoint_export(Services& services, Json params) {
  Json refpoint = CO_TRY(co_await find_point(services, text(params, "volume"),
                                             text(params, "refpoint"), PointKind::refpoint));
  refpoint["format"] = file_format;
  refpoint["version"] = file_version;
  refpoint["volume_name"] = refpoint["volume"];
  co_return pick("RefpointFile", refpoint);
}

/// The volume's own record is what vouches for a reference point, so importing finds it: by nonce
/// and epoch, under whatever name it has now.
Async<Result<Json>> refpoint_import(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  if (params["version"] != file_version) {
    co_return failure(ErrorKind::unsupported,
                      fmt::format("a reference point of version {} is not known to this berth",
                                  params["version"].get<std::uint64_t>()));
  }
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  const Json info = CO_TRY(co_await keeper.call("volume.info", Json::object(), {}));
  if (info.value("id", std::string()) != text(params, "volume_id")) {
    co_return failure(
        ErrorKind::full_backup_required,
        fmt::format("the reference point '{}' was made in another volume ({}) than '{}'",
                    text(params, "name"), text(params, "volume_id"), volume));
  }
  for (Json& refpoint : CO_TRY(co_await list_points(services, volume, PointKind::refpoint))) {
    if (refpoint["nonce"] == params["nonce"] && refpoint["epoch"] == params["epoch"])
      co_return std::move(refpoint);
  }
  co_return failure(
      ErrorKind::full_backup_required,
      fmt::format(
          "volume '{}' has no record any more of the cut that the reference point '{}' stands for",
          volume, text(params, "name")));
}

Async<Result<Json>> refpoint_delete(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const std::string refpoint = text(params, "refpoint");
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  CO_TRY(co_await keeper.call("refpoint.delete", {{"name", refpoint}}, {}));
  services.events.publish("refpoint_deleted", {.volume = volume, .job = {}}, refpoint);
  co_return Json::object();
}

Async<Result<Json>> changes_list(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  Json request = params;
  request.erase("volume");
  Json changes = CO_TRY(co_await keeper.call("changes", std::move(request), {}));
  changes["volume"] = volume;
  changes["since"] = params["since"];
  changes["until"] = params.value("until", Json());
  co_return pick("Changes", changes);
}

}  // namespace

HandlerTable refpoint_handlers() {
  return {{"refpoint.create", refpoint_create}, {"refpoint.convert", refpoint_convert},
          {"refpoint.list", refpoint_list},     {"refpoint.export", refpoint_export},
          {"refpoint.import", refpoint_import}, {"refpoint.delete", refpoint_delete},
          {"changes.list", changes_list}};
}

}  // namespace berth::control
