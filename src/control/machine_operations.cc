// vm.*

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/keeper_job.h"
#include "control/machine_creation.h"
#include "control/machines.h"
#include "control/operations.h"
#include "control/spawn.h"
#include "machine/vm/machine_travel.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

constexpr std::chrono::seconds stop_timeout_max{3600};

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Json shown_info(const Json& info) {
  const Json& record = info["record"];
  const Json& specification = record["specification"];
  Json disks = Json::array();
  for (const Json& disk : record["disks"]) {
    disks.push_back({{"name", machine::disk_name(disk["node"].get<std::string>())},
                     {"volume", disk["volume"]},
                     {"kind", disk["kind"]},
                     {"own", disk["own"]},
                     {"read_only", disk["read_only"]}});
  }
  const auto optional = [&info](const char* name) { return info.value(name, Json()); };
  return {{"name", specification["name"]},
          {"id", record["id"]},
          {"state", info["state"]},
          {"created_at", record["created_at"]},
          {"started_at", optional("started_at")},
          {"pid", optional("pid")},
          {"accelerator", optional("accelerator")},
          {"memory_used", optional("memory_used")},
          {"agent", info.value("agent", false)},
          {"addresses", info.value("addresses", Json::array())},
          {"console", optional("console")},
          {"vnc", optional("vnc")},
          {"disks", std::move(disks)},
          {"specification", specification},
          {"pause", optional("pause")},
          {"last_end", info["last_end"]},
          {"last_end_at", info["last_end_at"]}};
}

/// How deep it is suspended, or null.
Json level_of(const Json& info) {
  const auto pause = info.find("pause");
  return pause != info.end() && pause->is_object() ? pause->value("level", Json()) : Json();
}

/// As far as it is known without its guest, whose agent may be setting the clock just now.
Async<Result<Json>> shown_at_once(Services& services, std::string name) {
  const auto record = CO_TRY(co_await services.machines.record(std::move(name)));
  co_return shown_info(CO_TRY(co_await services.machines.info(record, false)));
}

Async<Result<Json>> vm_info(Services& services, Json params) {
  co_return co_await shown_machine(services, text(params, "machine"));
}

Async<Result<Json>> vm_list(Services& services, Json /*params*/) {
  Json machines = Json::array();
  for (const machine::MachineRecord& record : CO_TRY(co_await services.machines.list())) {
    const Json info = CO_TRY(co_await services.machines.info(record, false));
    machines.push_back({{"name", record.specification.name},
                        {"id", record.id.to_string()},
                        {"state", info["state"]},
                        {"level", level_of(info)},
                        {"cpus", record.specification.cpus},
                        {"memory", record.specification.memory},
                        {"disks", record.disks.size()}});
  }
  co_return Json{{"machines", std::move(machines)}};
}

// --- Running.

Async<Result<Json>> vm_start(Services& services, Json params) {
  const std::string name = text(params, "machine");
  CO_TRY(co_await services.machines.start(name, {.suspended = params.value("suspended", false)}));
  co_return co_await shown_at_once(services, name);
}

Async<Result<void>> stop(Services& services, Json params) {
  const std::string name = text(params, "machine");
  const auto record = CO_TRY(co_await services.machines.record(name));
  std::chrono::seconds patience(
      params.value("timeout_s", std::uint64_t{record.specification.stop_timeout_s}));
  patience = std::min(patience, stop_timeout_max);
  if (params.value("force", false)) patience = std::chrono::seconds(0);
  co_return co_await services.machines.stop(name, patience);
}

Async<Result<Json>> vm_stop(Services& services, Json params) {
  CO_TRY(co_await stop(services, params));
  co_return co_await shown_machine(services, text(params, "machine"));
}

Async<Result<Json>> vm_restart(Services& services, Json params) {
  CO_TRY(co_await stop(services, params));
  CO_TRY(co_await services.machines.start(text(params, "machine"), {}));
  co_return co_await shown_machine(services, text(params, "machine"));
}

/// Its disks' keepers are there, so that QEMU can bring what is under way to its end.
Async<Result<void>> have_disks(Services& services, std::string name) {
  const auto record = CO_TRY(co_await services.machines.record(std::move(name)));
  for (const machine::MachineDisk& disk : record.disks)
    CO_TRY(co_await services.keepers.use(disk.volume));
  co_return Result<void>();
}

Async<Result<Json>> vm_suspend(Services& services, Json params) {
  const std::string name = text(params, "machine");
  const std::string word = params.value("level", std::string("frozen"));
  const machine::PauseLevel level = CO_TRY(machine::parse_pause_level(word));
  CO_TRY(co_await services.machines.record(name));
  if (services.machines.is_on(name)) CO_TRY(co_await have_disks(services, name));
  CO_TRY(co_await services.machines.suspend(name, level));
  co_return co_await shown_machine(services, name);
}

Async<Result<Json>> vm_resume(Services& services, Json params) {
  const std::string name = text(params, "machine");
  CO_TRY(co_await services.machines.record(name));
  if (!services.machines.is_hibernated(name)) {
    const auto resumed =
        co_await services.machines.call(name, "machine.resume", Json::object(), {});
    // Or it was being hibernated, and is by now.
    if (!resumed && !services.machines.is_hibernated(name)) co_return failure(resumed.error());
    if (resumed) co_return co_await shown_at_once(services, name);
  }
  const auto started = co_await services.machines.start(name, {});
  // Or somebody else had it go on.
  const bool runs = services.machines.is_on(name) && !services.machines.is_hibernated(name);
  if (!started && !runs) co_return failure(started.error());
  co_return co_await shown_at_once(services, name);
}

// --- Changing.

Result<void> change(const Json& params, machine::MachineSpecification& specification) {
  using OnCrash = machine::MachineSpecification::OnCrash;
  if (params.contains("cpus")) {
    const auto cpus = params["cpus"].get<std::uint64_t>();
    specification.cpus = static_cast<unsigned>(std::min<std::uint64_t>(cpus, UINT32_MAX));
  }
  if (params.contains("memory")) specification.memory = params["memory"].get<std::uint64_t>();
  if (params.contains("autostart")) specification.autostart = params["autostart"] == "on";
  if (params.contains("on_crash"))
    specification.on_crash = params["on_crash"] == "restart" ? OnCrash::restart : OnCrash::preserve;
  if (params.contains("stop_timeout_s")) {
    const auto most = static_cast<std::uint64_t>(stop_timeout_max.count());
    specification.stop_timeout_s =
        static_cast<std::uint32_t>(std::min(params["stop_timeout_s"].get<std::uint64_t>(), most));
  }
  if (params.contains("limit_memory"))
    specification.limits.memory = params["limit_memory"].get<std::uint64_t>();
  if (params.contains("limit_cpus")) {
    const std::string cpus = text(params, "limit_cpus");
    double& limit = specification.limits.cpus;
    const auto [end, code] =
        std::from_chars(cpus.data(), cpus.data() + cpus.size(), limit, std::chars_format::fixed);
    if (code != std::errc{} || end != cpus.data() + cpus.size() || !(limit >= 0)) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("'{}' is no number of CPUs: write 1.5, or 0 for no limit", cpus));
    }
  }
  return machine::check(specification);
}

Async<Result<Json>> vm_set(Services& services, Json params) {
  const std::string name = text(params, "machine");
  CO_TRY(co_await services.machines.record(name));
  {
    const auto lock = co_await services.machines.lock(name);
    auto record = CO_TRY(co_await services.machines.record(name));
    if (params.contains("cpus") || params.contains("memory"))
      CO_TRY(services.machines.check_not_hibernated(name));
    CO_TRY(change(params, record.specification));
    if (services.machines.is_on(name)) {
      const auto& limits = record.specification.limits;
      const auto millicpus = static_cast<std::uint64_t>(limits.cpus * 1000);
      CO_TRY(co_await services.machines.call(
          name, "machine.limit",
          {{"millicpus", millicpus},
           {"memory", limits.memory},
           {"restart",
            record.specification.on_crash == machine::MachineSpecification::OnCrash::restart}},
          {}));
    }
    CO_TRY(co_await services.machines.save(record));
  }
  co_return co_await shown_machine(services, name);
}

Result<std::uint8_t> free_slot(const machine::MachineRecord& record) {
  for (std::size_t slot = 0; slot < machine::machine_disks_max; ++slot) {
    const auto has = [slot](const machine::MachineDisk& disk) {
      return disk.kind == machine::AttachedDisk::Kind::disk && disk.slot == slot;
    };
    if (std::ranges::none_of(record.disks, has)) return static_cast<std::uint8_t>(slot);
  }
  return failure(ErrorKind::limit,
                 fmt::format("the machine '{}' has {} disks already, and has room for no more",
                             record.specification.name, machine::machine_disks_max));
}

Async<Result<Json>> vm_attach(Services& services, Json params) {
  const std::string name = text(params, "machine");
  const std::string volume = text(params, "volume");
  CO_TRY(co_await services.machines.record(name));
  CO_TRY(services.volumes.check_exists(volume));
  {
    const auto lock = co_await services.machines.lock(name);
    auto record = CO_TRY(co_await services.machines.record(name));
    CO_TRY(services.machines.check_not_hibernated(name));
    std::string called = text(params, "disk");
    if (called.empty()) called = volume;
    machine::MachineDisk disk{.node = machine::disk_node(called),
                              .volume = volume,
                              .read_only = params.value("read_only", false),
                              .slot = CO_TRY(free_slot(record))};
    CO_TRY(machine::check_disk_name(called));
    if (std::ranges::find(record.disks, disk.node, &machine::MachineDisk::node) !=
        record.disks.end()) {
      co_return failure(ErrorKind::already_exists,
                        fmt::format("the machine '{}' has a disk '{}' already", name, called));
    }
    for (const machine::MachineDisk& other : record.disks) {
      if (other.volume == volume) {
        co_return failure(ErrorKind::in_use,
                          fmt::format("the volume '{}' is a disk of '{}' already", volume, name));
      }
    }
    const std::string user = CO_TRY(co_await services.machines.user_of(volume));
    if (!user.empty()) {
      co_return failure(ErrorKind::in_use,
                        fmt::format("the volume '{}' is a disk of the machine '{}'", volume, user));
    }
    record.disks.push_back(disk);
    if (services.machines.is_on(name)) {
      const auto attached = CO_TRY(co_await services.machines.serve(name, disk, record.uid));
      auto added =
          co_await services.machines.call(name, "machine.attach", machine::encode(attached), {});
      if (!added) {
        co_await services.machines.unserve(name, disk);
        co_return failure(std::move(added).error());
      }
    }
    CO_TRY(co_await services.machines.save(record));
  }
  services.events.publish("disk_attached", {.volume = volume, .machine = name}, "");
  co_return co_await shown_machine(services, name);
}

Async<Result<Json>> vm_detach(Services& services, Json params) {
  const std::string name = text(params, "machine");
  const std::string node = machine::disk_node(text(params, "disk"));
  CO_TRY(co_await services.machines.record(name));
  {
    const auto lock = co_await services.machines.lock(name);
    auto record = CO_TRY(co_await services.machines.record(name));
    CO_TRY(services.machines.check_not_hibernated(name));
    const auto disk = std::ranges::find(record.disks, node, &machine::MachineDisk::node);
    if (disk == record.disks.end()) {
      co_return failure(ErrorKind::not_found, fmt::format("the machine '{}' has no disk '{}'", name,
                                                          text(params, "disk")));
    }
    if (disk->own) {
      co_return failure(ErrorKind::precondition,
                        fmt::format("the disk '{}' was made with the machine '{}' and goes with it",
                                    text(params, "disk"), name));
    }
    const machine::MachineDisk detached = std::move(*disk);
    if (services.machines.is_on(name)) {
      CO_TRY(co_await services.keepers.use(detached.volume));
      CO_TRY(co_await services.machines.call(name, "machine.detach", {{"node", node}}, {}));
      co_await services.machines.unserve(name, detached);
    }
    record.disks.erase(disk);
    CO_TRY(co_await services.machines.save(record));
    services.events.publish("disk_detached", {.volume = detached.volume, .machine = name}, "");
  }
  co_return co_await shown_machine(services, name);
}

// --- Making and deleting.

Async<Result<Json>> vm_create(Services& services, Json params) {
  std::string file = text(params, "file");
  if (file.empty()) file = "vm.toml";
  std::string directory = text(params, "directory");
  if (directory.empty()) directory = "/";
  auto specification =
      CO_TRY(machine::parse_machine_toml(text(params, "specification"), file, directory));
  if (params.contains("name")) specification.name = text(params, "name");
  const std::string name = specification.name;
  CO_TRY(machine::check(specification));
  CO_TRY(co_await check_creation(services, specification));
  co_return co_await services.jobs.start(
      {.kind = "vm.create", .target = name, .volume = {}},
      [&services, specification](std::shared_ptr<JobProgress> job) {
        return create_machine(services, specification, std::move(job));
      });
}

Async<Result<Json>> run_export(Services& services, std::string name, std::string to,
                               std::shared_ptr<JobProgress> job) {
  const auto lock = co_await services.machines.lock(name);
  const auto record = CO_TRY(co_await services.machines.record(name));
  const auto closed = CO_TRY(co_await close_disks(services, record));
  const auto exported =
      CO_TRY(co_await on_worker(services.workers, [state = services.state_dir, name, to,
                                                   how = work_for(services, std::move(job))] {
        return machine::export_machine({state}, name, to, how);
      }));
  co_return Json{{"path", exported.path}, {"bytes", exported.bytes}};
}

Async<Result<Json>> vm_export(Services& services, Json params) {
  const std::string name = text(params, "machine");
  CO_TRY(co_await services.machines.record(name));
  co_return co_await services.jobs.start(
      {.kind = "vm.export", .target = name, .volume = {}},
      [&services, name, to = text(params, "to")](std::shared_ptr<JobProgress> job) {
        return run_export(services, name, to, std::move(job));
      });
}

Async<Result<Json>> run_import(Services& services, machine::MachineImport request,
                               std::shared_ptr<JobProgress> job) {
  const auto imported =
      CO_TRY(co_await on_worker(services.workers, [state = services.state_dir, request,
                                                   how = work_for(services, std::move(job))] {
        return machine::import_machine({state}, request, how);
      }));
  const std::string& name = imported.record.specification.name;
  services.events.publish("machine_imported", {.machine = name}, request.from);
  co_return Json{{"name", name},
                 {"id", imported.record.id.to_string()},
                 {"void_refpoints", imported.void_refpoints}};
}

Async<Result<Json>> vm_import(Services& services, Json params) {
  const bool moved = params.value("moved", false);
  if (moved == params.value("copied", false)) {
    co_return failure(
        ErrorKind::invalid_argument,
        "say how it came here: --moved, and the original is gone: it is the same machine and its "
        "reference points stay good; or --copied, and the original goes on: this becomes "
        "another machine, whose increments begin anew");
  }
  const machine::MachineImport request{
      .from = text(params, "from"),
      .name = text(params, "name"),
      .arrival = moved ? disk::Arrival::moved : disk::Arrival::copied};
  co_return co_await services.jobs.start(
      {.kind = "vm.import", .target = request.from, .volume = {}},
      [&services, request](std::shared_ptr<JobProgress> job) {
        return run_import(services, request, std::move(job));
      });
}

Async<Result<Json>> vm_delete(Services& services, Json params) {
  const std::string name = text(params, "machine");
  CO_TRY(co_await delete_machine(services, name));
  services.events.publish("machine_deleted", {.machine = name}, "");
  co_return Json::object();
}

}  // namespace

Async<Result<Json>> shown_machine(Services& services, std::string name) {
  const auto record = CO_TRY(co_await services.machines.record(std::move(name)));
  const Json info = CO_TRY(co_await services.machines.info(record, true));
  co_return shown_info(info);
}

HandlerTable machine_handlers() {
  return {{"vm.create", vm_create},   {"vm.list", vm_list},     {"vm.info", vm_info},
          {"vm.start", vm_start},     {"vm.stop", vm_stop},     {"vm.restart", vm_restart},
          {"vm.suspend", vm_suspend}, {"vm.resume", vm_resume}, {"vm.set", vm_set},
          {"vm.attach", vm_attach},   {"vm.detach", vm_detach}, {"vm.delete", vm_delete},
          {"vm.export", vm_export},   {"vm.import", vm_import}};
}

}  // namespace berth::control
