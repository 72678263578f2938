#include "control/machine_steps.h"

#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fault_point.h"
#include "base/log.h"
#include "control/machines.h"
#include "machine/volume_directory.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using machine::MachineCheckpoint;
using machine::MachinePoints;
using Phase = MachineCheckpoint::Phase;

/// Whether the volume has it; an error where that cannot be found out.
Async<Result<bool>> has_point(Services& services, std::string volume, std::string name,
                              PointKind kind) {
  const auto found = co_await find_point(services, volume, name, kind);
  if (found) co_return true;
  if (found.error().kind() == ErrorKind::not_found) co_return false;
  co_return failure(found.error());
}

Async<Result<void>> settle_making(Services& services, std::string machine,
                                  MachineCheckpoint checkpoint) {
  const std::vector<std::string> volumes = checkpointed_volumes(checkpoint.disks);
  bool everywhere = !volumes.empty();
  for (const std::string& volume : volumes) {
    everywhere = everywhere && CO_TRY(co_await has_point(services, volume, checkpoint.name,
                                                         PointKind::checkpoint));
  }
  if (!everywhere) co_return co_await drop_checkpoint(services, machine, checkpoint);
  checkpoint.phase = Phase::whole;
  checkpoint.consistency = machine::Consistency::crash;
  checkpoint.reason = "it was cut short after the disks' cut: what came before it is not known";
  co_return co_await on_points(
      services, machine, [checkpoint](const MachinePoints& points) -> Result<void> {
        const std::string directory = points.checkpoint_directory(checkpoint.name);
        for (const char* file : {"/memory", "/devices"}) ::unlink((directory + file).c_str());
        TRY(points.save(checkpoint));
        return points.set_current(checkpoint.name);
      });
}

/// Completes what an earlier daemon left half done, or takes it away; whether there was any.
Async<Result<bool>> settle_points(Services& services, std::string machine) {
  const auto checkpoints = CO_TRY(co_await on_points(
      services, machine, [](const MachinePoints& points) -> Result<std::vector<MachineCheckpoint>> {
        TRY(points.clear_leftovers());
        return points.checkpoints();
      }));
  bool any = false;
  for (const MachineCheckpoint& checkpoint : checkpoints) {
    any = any || checkpoint.phase != Phase::whole;
    switch (checkpoint.phase) {
      case Phase::whole: break;
      case Phase::making: CO_TRY(co_await settle_making(services, machine, checkpoint)); break;
      case Phase::deleting: CO_TRY(co_await drop_checkpoint(services, machine, checkpoint)); break;
      case Phase::converting:
        CO_TRY(co_await finish_conversion(services, machine, checkpoint));
        break;
    }
  }
  const auto refpoints = CO_TRY(co_await on_points(
      services, machine, [](const MachinePoints& points) { return points.refpoints(); }));
  for (const machine::MachineRefpoint& refpoint : refpoints) {
    if (!refpoint.deleting) continue;
    any = true;
    CO_TRY(co_await drop_refpoint(services, machine, refpoint));
  }
  co_return any;
}

}  // namespace

bool is_checkpointed(const machine::MachineDisk& disk) {
  return disk.kind == machine::AttachedDisk::Kind::disk && !disk.read_only;
}

std::vector<std::string> checkpointed_volumes(const std::vector<machine::MachineDisk>& disks) {
  std::vector<std::string> volumes;
  for (const machine::MachineDisk& disk : disks)
    if (is_checkpointed(disk)) volumes.push_back(disk.volume);
  return volumes;
}

Async<Result<TakenMachine>> take_machine(Services& services, std::string machine) {
  TakenMachine taken{.lock = co_await services.machines.lock(machine), .record = {}};
  taken.record = CO_TRY(co_await services.machines.record(machine));
  CO_TRY(co_await settle_points(services, machine));
  co_return taken;
}

Async<void> settle_machines(Services& services) {
  const auto records = co_await services.machines.list();
  if (!records) co_return;  // whoever found the machines has said so
  for (const machine::MachineRecord& record : *records) {
    const std::string& name = record.specification.name;
    const auto lock = co_await services.machines.lock(name);
    const auto settled = co_await settle_points(services, name);
    if (!settled)
      log_warning("the checkpoints of the machine '{}': {}", name, settled.error().message());
    if (settled && *settled) co_await services.machines.rest(name);
  }
}

Async<Result<void>> check_name_free(Services& services, std::vector<std::string> volumes,
                                    std::string name, PointKind kind) {
  for (const std::string& volume : volumes) {
    if (!CO_TRY(co_await has_point(services, volume, name, kind))) continue;
    co_return failure(
        ErrorKind::already_exists,
        fmt::format("the volume '{}' has a {} '{}' of its own", volume, to_string(kind), name));
  }
  co_return Result<void>();
}

Async<Result<void>> check_unused(Services& services, MachineCheckpoint checkpoint) {
  for (const std::string& volume : checkpointed_volumes(checkpoint.disks)) {
    const auto dependents = machine::dependents_of({services.state_dir}, volume, checkpoint.name);
    if (dependents.empty()) continue;
    co_return failure(ErrorKind::in_use,
                      fmt::format("the volume '{}' stands on the checkpoint '{}'",
                                  dependents.front(), checkpoint.name));
  }
  co_return Result<void>();
}

namespace {

/// `method` deletes the point; a volume, or a point, that is not there is fine.
Async<Result<void>> delete_in_volume(Services& services, std::string volume, std::string method,
                                     std::string point) {
  if (!services.volumes.check_exists(volume)) co_return Result<void>();
  auto keeper = CO_TRY(co_await services.keepers.use(std::move(volume)));
  const auto deleted = co_await keeper.call(std::move(method), {{"name", point}}, {});
  if (!deleted && deleted.error().kind() != ErrorKind::not_found)
    co_return failure(deleted.error());
  co_return Result<void>();
}

}  // namespace

Async<Result<void>> drop_checkpoint(Services& services, std::string machine,
                                    MachineCheckpoint checkpoint) {
  for (const std::string& volume : checkpointed_volumes(checkpoint.disks)) {
    CO_TRY(co_await delete_in_volume(services, volume, "checkpoint.delete", checkpoint.name));
    fault_point("deleting.part");
  }
  fault_point("deleting.parts");
  co_return co_await on_points(services, machine,
                               [name = checkpoint.name](const MachinePoints& points) {
                                 return points.remove_checkpoint(name);
                               });
}

Async<Result<void>> drop_refpoint(Services& services, std::string machine,
                                  machine::MachineRefpoint refpoint) {
  for (const machine::MachineRefpointPart& part : refpoint.parts) {
    CO_TRY(co_await delete_in_volume(services, part.volume, "refpoint.delete", refpoint.name));
    fault_point("forgetting.part");
  }
  fault_point("forgetting.parts");
  co_return co_await on_points(
      services, machine,
      [name = refpoint.name](const MachinePoints& points) { return points.remove_refpoint(name); });
}

Async<Result<void>> finish_conversion(Services& services, std::string machine,
                                      MachineCheckpoint checkpoint) {
  machine::MachineRefpoint refpoint{.name = checkpoint.refpoint,
                                    .created_at = checkpoint.created_at,
                                    .consistency = checkpoint.consistency,
                                    .parts = {}};
  for (const machine::MachineDisk& disk : checkpoint.disks) {
    if (!is_checkpointed(disk)) continue;
    auto keeper = CO_TRY(co_await services.keepers.use(disk.volume));
    const auto converted = co_await keeper.call(
        "checkpoint.convert", {{"name", checkpoint.name}, {"refpoint", checkpoint.refpoint}}, {});
    if (!converted && converted.error().kind() != ErrorKind::not_found)
      co_return failure(converted.error());
    fault_point("converting.part");
    // Also of one that was converted before this was cut short.
    const Json point = CO_TRY(
        co_await find_point(services, disk.volume, checkpoint.refpoint, PointKind::refpoint));
    refpoint.parts.push_back({.disk = machine::disk_name(disk.node),
                              .volume = disk.volume,
                              .epoch = point.value("epoch", std::uint64_t{0}),
                              .nonce = CO_TRY(Id128::parse(point.value("nonce", std::string())))});
  }
  co_return co_await on_points(
      services, machine,
      [refpoint, name = checkpoint.name](const MachinePoints& points) -> Result<void> {
        fault_point("converting.parts");
        TRY(points.save(refpoint));
        fault_point("converting.saved");
        return points.remove_checkpoint(name);
      });
}

Json shown_checkpoint(const MachineCheckpoint& checkpoint, const std::string& machine,
                      const std::string& current) {
  Json volumes = Json::array();
  for (const std::string& volume : checkpointed_volumes(checkpoint.disks))
    volumes.push_back(volume);
  return {{"machine", machine},
          {"name", checkpoint.name},
          {"parent", checkpoint.parent.empty() ? Json() : Json(checkpoint.parent)},
          {"current", checkpoint.name == current},
          {"consistency", to_string(checkpoint.consistency)},
          {"reason", checkpoint.reason},
          {"memory", checkpoint.memory},
          {"created_at", checkpoint.created_at},
          {"frozen_us", checkpoint.frozen_us},
          {"stopped_us", checkpoint.stopped_us},
          {"volumes", std::move(volumes)}};
}

Json shown_refpoint(const machine::MachineRefpoint& refpoint, const std::string& machine) {
  Json parts = Json::array();
  for (const machine::MachineRefpointPart& part : refpoint.parts) {
    parts.push_back({{"disk", part.disk},
                     {"volume", part.volume},
                     {"epoch", part.epoch},
                     {"nonce", part.nonce.to_string()}});
  }
  return {{"machine", machine},
          {"name", refpoint.name},
          {"created_at", refpoint.created_at},
          {"consistency", to_string(refpoint.consistency)},
          {"disks", std::move(parts)}};
}

}  // namespace berth::control
