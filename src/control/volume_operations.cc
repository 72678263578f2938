// volume.*

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/keeper_job.h"
#include "control/keeper_lists.h"
#include "control/operations.h"
#include "control/volume_check.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Json shown_summary(const machine::VolumeSummary& summary, const KeeperStatus& status) {
  return {{"name", summary.name},
          {"id", summary.id},
          {"size", summary.size},
          {"block_size", summary.block_size},
          {"backing", summary.backing},
          {"adopted", summary.adopted},
          {"created_at", summary.created_at},
          {"state", status.state},
          {"error", status.error}};
}

Async<Result<Json>> volume_list(Services& services, Json /*params*/) {
  Json list = Json::array();
  for (const machine::VolumeSummary& summary : CO_TRY(co_await services.volumes.list())) {
    list.push_back(shown_summary(summary, services.keepers.status(summary.name)));
  }
  co_return Json{{"volumes", std::move(list)}};
}

Async<Result<Json>> volume_info(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  Json info = CO_TRY(co_await keeper.call("volume.info", Json::object(), {}));
  info["name"] = volume;
  info["keeper_pid"] = keeper.pid();
  info["listeners"] = CO_TRY(co_await services.keepers.listeners(volume));
  co_return pick("Volume", info);
}

// --- Creating.

Async<Result<Json>> run_create(Services& services, machine::VolumeCreateRequest request,
                               std::shared_ptr<JobProgress> job) {
  const std::string backing_volume = backing_volume_of(request.backing);
  Keepers::Use backing;  // serves the backing while the volume is made
  if (!backing_volume.empty()) backing = CO_TRY(co_await services.keepers.use(backing_volume));
  const std::string name = request.name;
  const auto summary = CO_TRY(
      co_await services.volumes.create(std::move(request), work_for(services, std::move(job))));
  services.events.publish("volume_created", {.volume = name, .job = {}},
                          fmt::format("{} bytes", summary.size));
  co_return shown_summary(summary, services.keepers.status(name));
}

Async<Result<Json>> volume_create(Services& services, Json params) {
  machine::VolumeCreateRequest request{.name = text(params, "name"),
                                       .size = params.value("size", std::uint64_t{0}),
                                       .backing = text(params, "backing"),
                                       .import = text(params, "import"),
                                       .adopt = text(params, "adopt"),
                                       .ext4 = text(params, "file_system") == "ext4"};
  if (params.contains("block_size")) {
    const auto block_size = params["block_size"].get<std::uint64_t>();
    if (block_size > disk::block_size_max) {
      co_return failure(ErrorKind::invalid_argument,
                        fmt::format("a block size of {} bytes is too large: at most {}", block_size,
                                    disk::block_size_max));
    }
    request.block_size = static_cast<std::uint32_t>(block_size);
  }
  const int origins = static_cast<int>(!request.backing.empty()) +
                      static_cast<int>(!request.import.empty()) +
                      static_cast<int>(!request.adopt.empty()) + static_cast<int>(request.ext4);
  if (origins > 1) {
    co_return failure(ErrorKind::invalid_argument,
                      "give at most one of backing, import, adopt and file_system");
  }
  if ((origins == 0 || request.ext4) && request.size == 0) {
    co_return failure(ErrorKind::invalid_argument, "an empty volume needs a size");
  }
  if (services.volumes.check_exists(request.name)) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a volume '{}' already", request.name));
  }
  JobDescription description{
      .kind = "volume.create", .target = request.name, .volume = request.name};
  co_return co_await services.jobs.start(std::move(description),
                                         [&services, request](std::shared_ptr<JobProgress> job) {
                                           return run_create(services, request, std::move(job));
                                         });
}

// --- Changing.

Async<Result<Json>> volume_resize(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const auto size = params["size"].get<std::uint64_t>();
  CO_TRY(co_await services.machines.check_disk_not_hibernated(volume));
  auto keeper = CO_TRY(co_await services.keepers.use(volume));
  CO_TRY(co_await keeper.call("volume.resize", {{"size", size}}, {}));
  services.events.publish("volume_resized", {.volume = volume, .job = {}},
                          fmt::format("{} bytes", size));
  co_return Json{{"name", volume}, {"size", size}};
}

Async<Result<Json>> volume_delete(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  CO_TRY(services.volumes.check_exists(volume));
  if (const std::string user = CO_TRY(co_await services.machines.user_of(volume)); !user.empty()) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("the volume '{}' is a disk of the machine '{}'", volume, user));
  }
  if (const std::string user = co_await services.containers.user_of_volume(volume); !user.empty()) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("the volume '{}' is one of the container '{}'", volume, user));
  }
  const auto closed = CO_TRY(co_await services.keepers.close(volume));
  CO_TRY(co_await services.volumes.remove(volume));
  std::error_code ignored;
  std::filesystem::remove_all(machine::RunLayout{services.run_dir}.keeper(volume), ignored);
  (void)co_await services.cuts.mark_resolved(volume);
  services.events.publish("volume_deleted", {.volume = volume, .job = {}}, "");
  co_return Json::object();
}

Async<Result<Json>> volume_populate(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  co_return co_await start_keeper_job(
      services, {.kind = "volume.populate", .target = volume, .volume = volume}, "volume.populate",
      {{"rate", params.value("rate", std::uint64_t{0})}},
      [](const Json& answer) { return pick("Populated", answer); });
}

// --- Coming and going.

/// Its files, with nobody at them: until the lock goes, no keeper is started.
Async<Result<AsyncMutex::Lock>> close_to_copy(Services& services, std::string volume) {
  auto closed = co_await services.keepers.close(volume);
  if (closed || closed.error().kind() != ErrorKind::in_use) co_return closed;
  co_return failure(ErrorKind::in_use,
                    fmt::format("{}. While it runs, a checkpoint of it can be exported: `berth "
                                "checkpoint create`, then `berth checkpoint export`",
                                closed.error().message()));
}

Async<Result<Json>> run_export(Services& services, std::string volume, std::string to,
                               std::shared_ptr<JobProgress> job) {
  auto closed = CO_TRY(co_await close_to_copy(services, volume));
  const bool is_closed = CO_TRY(co_await services.volumes.is_closed(volume));
  if (!is_closed) {
    // Its keeper died. Another one goes on from there, and closes it as it should be.
    closed = {};
    {
      const auto keeper = CO_TRY(co_await services.keepers.use(volume));
    }
    closed = CO_TRY(co_await close_to_copy(services, volume));
  }
  const auto exported = CO_TRY(
      co_await services.volumes.export_directory(volume, to, work_for(services, std::move(job))));
  services.events.publish("volume_exported", {.volume = volume, .job = {}},
                          fmt::format("to {}", exported.path));
  co_return Json{
      {"name", volume}, {"id", exported.id}, {"path", exported.path}, {"bytes", exported.bytes}};
}

Async<Result<Json>> volume_export(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const std::string to = text(params, "to");
  CO_TRY(services.volumes.check_exists(volume));
  // So that a volume that is in use is refused at once.
  {
    const auto closed = CO_TRY(co_await close_to_copy(services, volume));
  }
  co_return co_await services.jobs.start(
      {.kind = "volume.export", .target = volume, .volume = volume},
      [&services, volume, to](std::shared_ptr<JobProgress> job) {
        return run_export(services, volume, to, std::move(job));
      });
}

Async<Result<Json>> run_import(Services& services, machine::VolumeImportRequest request,
                               std::shared_ptr<JobProgress> job) {
  const std::string name = request.name;
  const bool is_copy = request.arrival == disk::Arrival::copied;
  // A directory that is a volume of this host has a keeper, maybe.
  AsyncMutex::Lock closed;
  if (const std::string source = services.volumes.volume_at(request.directory); !source.empty())
    closed = CO_TRY(co_await close_to_copy(services, source));
  const auto imported = CO_TRY(co_await services.volumes.import_directory(
      std::move(request), work_for(services, std::move(job))));
  services.events.publish(
      "volume_imported", {.volume = name, .job = {}},
      fmt::format("{}, as {}", is_copy ? "a copy" : "moved here", imported.summary.id));
  co_return Json{{"name", name},
                 {"id", imported.summary.id},
                 {"size", imported.summary.size},
                 {"block_size", imported.summary.block_size},
                 {"backing", imported.summary.backing},
                 {"arrival", is_copy ? "copied" : "moved"},
                 {"void_refpoints", imported.void_refpoints},
                 {"lost_checkpoints", imported.lost_checkpoints}};
}

Async<Result<Json>> volume_import(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const bool moved = params.value("moved", false);
  const bool copied = params.value("copied", false);
  if (moved == copied) {
    co_return failure(
        ErrorKind::invalid_argument,
        fmt::format("say {} of the two this directory is. --moved: the original is gone, this is "
                    "the same volume, and its reference points stay good. --copied: the original "
                    "goes on, this becomes another volume, and its next backup is a full one",
                    moved ? "only one" : "which"));
  }
  const machine::VolumeImportRequest request{
      .name = volume,
      .directory = text(params, "directory"),
      .arrival = moved ? disk::Arrival::moved : disk::Arrival::copied,
      .move_files = params.value("move_files", false)};
  if (services.volumes.check_exists(volume) &&
      services.volumes.volume_at(request.directory) != volume) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a volume '{}' already", volume));
  }
  co_return co_await services.jobs.start(
      {.kind = "volume.import", .target = volume, .volume = volume},
      [&services, request](std::shared_ptr<JobProgress> job) {
        return run_import(services, request, std::move(job));
      });
}

// --- Checking.

Async<Result<Json>> run_check(Services& services, std::string volume, bool repair) {
  const auto closed = CO_TRY(co_await services.keepers.close(volume));
  co_return co_await check_volume_on(
      services.workers, {.directory = machine::StateLayout{services.state_dir}.volume(volume),
                         .shown_as = volume,
                         .repair = repair,
                         .volume = volume,
                         .run_dir = services.run_dir});
}

Async<Result<Json>> volume_check(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  const bool repair = params.value("repair", false);
  CO_TRY(services.volumes.check_exists(volume));
  if (repair) CO_TRY(co_await services.machines.check_disk_not_hibernated(volume));
  // So that a volume that is in use is refused at once.
  {
    const auto closed = CO_TRY(co_await services.keepers.close(volume));
  }
  co_return co_await services.jobs.start(
      {.kind = "volume.check", .target = volume, .volume = volume},
      [&services, volume, repair](std::shared_ptr<JobProgress> /*job*/) {
        return run_check(services, volume, repair);
      });
}

// --- Serving.

Async<Result<Json>> volume_serve(Services& services, Json params) {
  const std::string volume = text(params, "volume");
  if (params.contains("unix") && params.contains("tcp")) {
    co_return failure(ErrorKind::invalid_argument, "give one of unix and tcp");
  }
  if (!params.value("read_only", false))
    CO_TRY(co_await services.machines.check_disk_not_hibernated(volume));
  Json request = {{"insecure", params.value("insecure", false)},
                  {"read_only", params.value("read_only", false)}};
  if (params.contains("tls_dir")) request["tls_dir"] = params["tls_dir"];
  if (params.contains("tcp")) {
    request["tcp"] = params["tcp"];
  } else if (params.contains("unix")) {
    request["unix"] = params["unix"];
  } else {
    const std::string directory = services.run_dir + "/nbd";
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error)
      co_return errno_failure(error.value(),
                              fmt::format("cannot make the directory '{}'", directory));
    request["unix"] = fmt::format("{}/{}.sock", directory, volume);
  }
  co_return co_await services.keepers.serve(volume, std::move(request));
}

Async<Result<Json>> volume_unserve(Services& services, Json params) {
  if (params.contains("unix") && params.contains("tcp")) {
    co_return failure(ErrorKind::invalid_argument, "give one of unix and tcp");
  }
  Json address = Json::object();
  for (const char* transport : {"unix", "tcp"}) {
    if (params.contains(transport)) address[transport] = params[transport];
  }
  Json stopped =
      CO_TRY(co_await services.keepers.unserve(text(params, "volume"), std::move(address)));
  co_return Json{{"listeners", std::move(stopped)}};
}

}  // namespace

HandlerTable volume_handlers() {
  return {{"volume.create", volume_create},   {"volume.list", volume_list},
          {"volume.info", volume_info},       {"volume.resize", volume_resize},
          {"volume.delete", volume_delete},   {"volume.serve", volume_serve},
          {"volume.unserve", volume_unserve}, {"volume.populate", volume_populate},
          {"volume.check", volume_check},     {"volume.export", volume_export},
          {"volume.import", volume_import}};
}

}  // namespace berth::control
