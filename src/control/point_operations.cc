#include "control/point_operations.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/keeper_lists.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

Async<Result<Json>> list_points_of(Services& services, std::string volume, PointKind kind) {
  const bool checkpoints = kind == PointKind::checkpoint;
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  const Json points =
      CO_TRY(co_await list_all(keeper, checkpoints ? "checkpoint.list" : "refpoint.list",
                               checkpoints ? "checkpoints" : "refpoints"));
  std::vector<Json> shown;
  for (const Json& point : points) {
    if (point.value("provisional", false)) continue;
    shown.push_back(
        CO_TRY(checkpoints ? shown_checkpoint(volume, point) : shown_refpoint(volume, point)));
  }
  std::ranges::sort(shown, {}, [](const Json& point) {
    return std::pair(point["epoch"].get<std::uint64_t>(), point["name"].get<std::string>());
  });
  co_return Json(std::move(shown));
}

}  // namespace

std::string_view to_string(PointKind kind) {
  return kind == PointKind::checkpoint ? "checkpoint" : "reference point";
}

Async<Result<Json>> make_cut(Services& services, std::vector<std::string> volumes, CutWish wish) {
  std::vector<Async<Result<Keepers::Use>>> opening;
  for (const std::string& volume : volumes) opening.push_back(services.keepers.use(volume));
  std::vector<Result<Keepers::Use>> keepers = co_await gather(std::move(opening));
  std::vector<CutMember> members;
  for (std::size_t i = 0; i < volumes.size(); ++i) {
    if (!keepers[i]) co_return failure(keepers[i].error());
    members.push_back({.volume = volumes[i], .channel = &*keepers[i]});
  }
  Json cut = CO_TRY(co_await services.cuts.cut(std::move(members), wish));
  const bool with_checkpoint = !wish.checkpoint.empty();
  for (const std::string& volume : volumes) {
    services.events.publish(with_checkpoint ? "checkpoint_created" : "refpoint_created",
                            {.volume = volume, .job = {}},
                            with_checkpoint ? wish.checkpoint : wish.refpoint);
  }
  co_return cut;
}

Async<Result<Json>> list_points(Services& services, std::string volume, PointKind kind) {
  if (!volume.empty()) co_return co_await list_points_of(services, volume, kind);
  Json all = Json::array();
  for (const machine::VolumeSummary& summary : CO_TRY(co_await services.volumes.list())) {
    for (Json& point : CO_TRY(co_await list_points_of(services, summary.name, kind)))
      all.push_back(std::move(point));
  }
  co_return all;
}

Async<Result<Json>> find_point(Services& services, std::string volume, std::string name,
                               PointKind kind) {
  for (Json& point : CO_TRY(co_await list_points_of(services, volume, kind))) {
    if (point["name"] == name) co_return std::move(point);
  }
  co_return failure(ErrorKind::not_found,
                    fmt::format("volume '{}' has no {} '{}'", volume, to_string(kind), name));
}

}  // namespace berth::control
