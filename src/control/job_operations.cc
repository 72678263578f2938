// job.*, events.*: what is under way, and what happens. And the tables of all handlers.

#include <algorithm>

#include <nlohmann/json.hpp>

#include "control/operations.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

constexpr std::size_t jobs_listed_default = 100;

Async<Result<Json>> job_list(Services& services, Json params) {
  co_return services.jobs.list(params.value("state", "all"),
                               params.value("count", jobs_listed_default));
}

Async<Result<Json>> job_info(Services& services, Json params) {
  co_return services.jobs.info(params["job"].get<std::string>());
}

Async<Result<Json>> job_cancel(Services& services, Json params) {
  co_return services.jobs.cancel(params["job"].get<std::string>());
}

Async<Result<Stream>> job_watch(Services& services, Json params) {
  co_return services.jobs.watch(params["job"].get<std::string>());
}

Async<Result<Stream>> events_watch(Services& services, Json params) {
  std::optional<std::uint64_t> since;
  if (params.contains("since")) since = params["since"].get<std::uint64_t>();
  co_return services.events.follow(since);
}

HandlerTable all_handlers() {
  HandlerTable all;
  for (const auto& part :
       {host_handlers(), volume_handlers(), checkpoint_handlers(), refpoint_handlers(),
        machine_handlers(), machine_point_handlers(), image_handlers(), container_handlers(),
        template_handlers(), kernel_handlers(), job_handlers()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace

HandlerTable job_handlers() {
  return {{"job.list", job_list}, {"job.info", job_info}, {"job.cancel", job_cancel}};
}

Handler find_handler(std::string_view action) {
  static const HandlerTable all = all_handlers();
  const auto found = std::ranges::find(all, action, &HandlerTable::value_type::first);
  return found == all.end() ? nullptr : found->second;
}

StreamHandler find_stream_handler(std::string_view action) {
  if (action == "container.logs") return container_logs;
  if (action == "job.watch") return job_watch;
  return action == "events.watch" ? events_watch : nullptr;
}

UpgradeHandler find_upgrade_handler(std::string_view action) {
  return action == "container.attach" ? container_attach : nullptr;
}

}  // namespace berth::control
