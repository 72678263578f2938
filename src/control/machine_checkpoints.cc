#include "control/machine_checkpoints.h"

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/units.h"
#include "control/keeper_job.h"
#include "control/machine_steps.h"
#include "control/machines.h"
#include "control/point_operations.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using machine::MachineCheckpoint;
using machine::MachinePoints;
using Phase = MachineCheckpoint::Phase;

constexpr Milliseconds freeze_grace{15'000};  // beyond the limit of the freeze itself
constexpr Milliseconds memory_finish_timeout{600'000};

// --- Making one.

machine::MachineStamp stamp_of(const Json& info, const machine::MachineRecord& record) {
  return {.qemu = info.value("qemu", std::string()),
          .machine_type = record.specification.machine_type,
          .cpu_model = record.specification.cpu_model,
          .memory = record.specification.memory,
          .cpus = record.specification.cpus,
          .accelerator = info.value("accelerator", std::string())};
}

/// Whether a machine that does not run left its file systems as it should have.
void describe_stopped(MachineCheckpoint& checkpoint, const machine::MachineState& state) {
  if (state.clean) {
    checkpoint.consistency = machine::Consistency::application;
    checkpoint.reason = "the machine had shut down";
  } else {
    checkpoint.reason = state.last_end.empty() ? "the machine has never run"
                                               : fmt::format("the machine had {}", state.last_end);
  }
}

/// Step 2 of a running machine.
Async<Result<void>> begin(std::shared_ptr<KeeperConnection> keeper, const CheckpointWish& wish,
                          const std::string& directory, MachineCheckpoint& checkpoint,
                          std::shared_ptr<JobProgress> job) {
  if (wish.memory) {
    CO_TRY(co_await keeper->call("memory.begin", {{"directory", directory}},
                                 call_for(job, "saving the memory")));
    fault_point("making.memory-taken");
    checkpoint.reason = "the memory is part of it: the guest was not asked to rest";
    co_return Result<void>();
  }
  if (!wish.quiesce) {
    checkpoint.reason = "it was not asked for";
    co_return Result<void>();
  }
  job->report("freezing the guest", 0, 0);
  const Json quiet =
      CO_TRY(co_await keeper->call("guest.freeze", {{"limit_ms", wish.freeze_limit.count()}},
                                   {.timeout = wish.freeze_limit + freeze_grace}));
  checkpoint.consistency =
      CO_TRY(machine::consistency_from_string(quiet.value("consistency", std::string("crash"))));
  checkpoint.reason = quiet.value("reason", std::string());
  fault_point("making.frozen");
  co_return Result<void>();
}

/// Step 4: the guest goes on, however step 3 went.
Async<Result<void>> end(std::shared_ptr<KeeperConnection> keeper, const CheckpointWish& wish,
                        MachineCheckpoint& checkpoint, bool failed) {
  if (wish.memory && failed) {
    (void)co_await keeper->call("memory.abandon", Json::object(), {});
    co_return Result<void>();
  }
  if (wish.memory) {
    const Json figures = CO_TRY(
        co_await keeper->call("memory.finish", Json::object(), {.timeout = memory_finish_timeout}));
    fault_point("making.memory-finished");
    checkpoint.stopped_us = figures.value("stopped_us", std::int64_t{0});
    co_return Result<void>();
  }
  if (!wish.quiesce) co_return Result<void>();
  const Json thawed =
      CO_TRY(co_await keeper->call("guest.thaw", Json::object(), {.timeout = freeze_grace}));
  fault_point("making.thawed");
  checkpoint.frozen_us = thawed.value("frozen_us", std::int64_t{0});
  const std::string hook_failure = thawed.value("hook_failure", std::string());
  if (!thawed.value("in_time", false)) {
    checkpoint.consistency = machine::Consistency::crash;
    checkpoint.reason = "the guest was thawed before the disks were cut: its time was over";
  } else if (!hook_failure.empty() && checkpoint.consistency == machine::Consistency::application) {
    checkpoint.consistency = machine::Consistency::filesystem;
    checkpoint.reason = hook_failure;
  }
  co_return Result<void>();
}

/// Whether it is what was asked for.
Result<void> check_wish(const CheckpointWish& wish, const MachineCheckpoint& checkpoint) {
  if (!wish.application || checkpoint.consistency == machine::Consistency::application) return {};
  return failure(ErrorKind::precondition,
                 fmt::format("the checkpoint would be '{}' and no more: {}",
                             to_string(checkpoint.consistency), checkpoint.reason));
}

/// Step 3.
Async<Result<void>> cut_disks(Services& services, const CheckpointWish& wish,
                              std::vector<std::string> volumes,
                              std::function<void()> writes_go_on) {
  if (volumes.empty()) co_return Result<void>();
  CO_TRY(co_await make_cut(services, std::move(volumes),
                           {.checkpoint = wish.name,
                            .refpoint = {},
                            .durability = wish.durability,
                            .writes_go_on = std::move(writes_go_on)}));
  co_return Result<void>();
}

/// How far step 3 has come, for step 4.
struct CutState {
  explicit CutState(const Executor& executor) : changed(executor) {}
  Wakeup changed;
  bool writes_go_on = false;
  std::optional<bool> done;  // whether it was made
};

Async<Result<void>> cut_and_tell(Services& services, const CheckpointWish& wish,
                                 std::vector<std::string> volumes,
                                 std::shared_ptr<CutState> state) {
  auto done = co_await cut_disks(services, wish, std::move(volumes), [state] {
    fault_point("making.writes-go-on");
    state->writes_go_on = true;
    state->changed.notify();
  });
  state->done = done.has_value();
  state->changed.notify();
  co_return done;
}

/// The guest need not wait until the cut's record is durable, only for its instant. Should the
/// record fail then, there is no checkpoint.
Async<Result<void>> end_after_cut(std::shared_ptr<KeeperConnection> keeper,
                                  const CheckpointWish& wish, MachineCheckpoint& checkpoint,
                                  std::shared_ptr<CutState> state) {
  while (!state->writes_go_on && !state->done) co_await state->changed.wait();
  co_return co_await end(keeper, wish, checkpoint, state->done && !*state->done);
}

/// Steps 3 and 4.
Async<Result<void>> cut_and_end(Services& services, std::shared_ptr<KeeperConnection> keeper,
                                const CheckpointWish& wish, MachineCheckpoint& checkpoint) {
  const auto state = std::make_shared<CutState>(services.executor);
  std::vector<Async<Result<void>>> both;
  both.push_back(cut_and_tell(services, wish, checkpointed_volumes(checkpoint.disks), state));
  both.push_back(end_after_cut(std::move(keeper), wish, checkpoint, state));
  std::vector<Result<void>> outcomes = co_await gather(std::move(both));
  for (Result<void>& outcome : outcomes) CO_TRY(std::move(outcome));
  co_return Result<void>();
}

Async<Result<void>> cut_running(Services& services, const CheckpointWish& wish,
                                const machine::MachineRecord& record, const std::string& directory,
                                MachineCheckpoint& checkpoint, std::shared_ptr<JobProgress> job) {
  // One connection for all of it: should we die, its end undoes what was begun.
  const auto keeper = CO_TRY(services.machines.connection(wish.machine));
  const Json info = CO_TRY(co_await keeper->call("machine.info", Json::object(), {}));
  checkpoint.suspended = info.value("state", std::string()) == "suspended";
  checkpoint.stamp = stamp_of(info, record);
  CO_TRY(co_await begin(keeper, wish, directory, checkpoint, job));
  if (auto refused = check_wish(wish, checkpoint); !refused) {
    (void)co_await end(keeper, wish, checkpoint, true);
    co_return refused;
  }
  job->report("cutting the disks", 0, 0);
  CO_TRY(co_await cut_and_end(services, keeper, wish, checkpoint));
  co_return check_wish(wish, checkpoint);  // the thaw may have said more
}

Async<Result<void>> save(Services& services, std::string machine, MachineCheckpoint checkpoint) {
  co_return co_await on_points(
      services, std::move(machine),
      [checkpoint](const MachinePoints& points) { return points.save(checkpoint); });
}

/// Nothing is left of it.
Async<void> take_back(Services& services, std::string machine, MachineCheckpoint checkpoint) {
  const auto deleted = co_await drop_checkpoint(services, machine, checkpoint);
  if (!deleted)
    log_warning("checkpoint {} of {}: {}", checkpoint.name, machine, deleted.error().message());
}

}  // namespace

Async<Result<Json>> make_checkpoint(Services& services, CheckpointWish wish,
                                    std::shared_ptr<JobProgress> job) {
  const TakenMachine taken = CO_TRY(co_await take_machine(services, wish.machine));
  const MachinePoints points({services.state_dir}, wish.machine);
  if (points.checkpoint(wish.name)) {
    co_return failure(
        ErrorKind::already_exists,
        fmt::format("the machine '{}' has a checkpoint '{}' already", wish.machine, wish.name));
  }
  const bool runs = services.machines.is_on(wish.machine);
  if (wish.memory) CO_TRY(services.machines.check_not_hibernated(wish.machine));
  if (wish.memory && !runs) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("the machine '{}' is not running: it has no memory to save", wish.machine));
  }
  MachineCheckpoint checkpoint{.name = wish.name,
                               .parent = points.current(),
                               .created_at = format_time(std::chrono::system_clock::now()),
                               .disks = taken.record.disks};
  const std::vector<std::string> volumes = checkpointed_volumes(checkpoint.disks);
  if (volumes.empty() && !wish.memory)
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' has no disks", wish.machine));
  CO_TRY(co_await check_name_free(services, volumes, wish.name, PointKind::checkpoint));
  CO_TRY(co_await save(services, wish.machine, checkpoint));
  fault_point("making.recorded");

  Result<void> done;
  if (runs) {
    done = co_await cut_running(services, wish, taken.record,
                                points.checkpoint_directory(wish.name), checkpoint, job);
  } else {
    describe_stopped(checkpoint, CO_TRY(co_await services.machines.state(wish.machine)));
    done = check_wish(wish, checkpoint);
    if (done) done = co_await cut_disks(services, wish, volumes, {});
  }
  if (done) {
    fault_point("making.cut");
    checkpoint.phase = Phase::whole;
    checkpoint.memory = wish.memory;
    done = co_await save(services, wish.machine, checkpoint);
    fault_point("making.whole");
  }
  if (!done) {
    co_await take_back(services, wish.machine, checkpoint);
    co_return failure(std::move(done).error().with_context(
        fmt::format("cannot make a checkpoint of the machine '{}'", wish.machine)));
  }
  CO_TRY(co_await on_points(services, wish.machine, [name = wish.name](const MachinePoints& all) {
    return all.set_current(name);
  }));
  fault_point("making.current");
  co_await services.machines.rest(wish.machine);
  services.events.publish("checkpoint_created", {.machine = wish.machine}, wish.name);
  co_return shown_checkpoint(checkpoint, wish.machine, wish.name);
}

Async<Result<Json>> machine_checkpoints(Services& services, std::string machine) {
  const TakenMachine taken = CO_TRY(co_await take_machine(services, machine));
  co_return co_await on_points(
      services, machine, [machine](const MachinePoints& points) -> Result<Json> {
        const std::string current = points.current();
        Json list = Json::array();
        for (const MachineCheckpoint& checkpoint : TRY(points.checkpoints()))
          list.push_back(shown_checkpoint(checkpoint, machine, current));
        return list;
      });
}

Async<Result<Json>> machine_refpoints(Services& services, std::string machine) {
  const TakenMachine taken = CO_TRY(co_await take_machine(services, machine));
  co_return co_await on_points(
      services, machine, [machine](const MachinePoints& points) -> Result<Json> {
        Json list = Json::array();
        for (const machine::MachineRefpoint& refpoint : TRY(points.refpoints()))
          list.push_back(shown_refpoint(refpoint, machine));
        return list;
      });
}

Async<Result<void>> delete_checkpoint(Services& services, std::string machine,
                                      std::string checkpoint) {
  const TakenMachine taken = CO_TRY(co_await take_machine(services, machine));
  MachineCheckpoint found =
      CO_TRY(MachinePoints({services.state_dir}, machine).checkpoint(checkpoint));
  CO_TRY(co_await check_unused(services, found));
  found.phase = Phase::deleting;
  CO_TRY(co_await save(services, machine, found));
  fault_point("deleting.recorded");
  CO_TRY(co_await drop_checkpoint(services, machine, found));
  co_await services.machines.rest(machine);
  services.events.publish("checkpoint_deleted", {.machine = machine}, checkpoint);
  co_return Result<void>();
}

Async<Result<void>> delete_refpoint(Services& services, std::string machine, std::string refpoint) {
  const TakenMachine taken = CO_TRY(co_await take_machine(services, machine));
  machine::MachineRefpoint found =
      CO_TRY(MachinePoints({services.state_dir}, machine).refpoint(refpoint));
  found.deleting = true;
  CO_TRY(co_await on_points(services, machine,
                            [found](const MachinePoints& points) { return points.save(found); }));
  fault_point("forgetting.recorded");
  CO_TRY(co_await drop_refpoint(services, machine, found));
  co_await services.machines.rest(machine);
  co_return Result<void>();
}

Async<Result<Json>> convert_checkpoint(Services& services, std::string machine,
                                       std::string checkpoint, std::string refpoint) {
  const TakenMachine taken = CO_TRY(co_await take_machine(services, machine));
  const MachinePoints points({services.state_dir}, machine);
  MachineCheckpoint found = CO_TRY(points.checkpoint(checkpoint));
  if (refpoint.empty()) refpoint = checkpoint;
  if (points.refpoint(refpoint)) {
    co_return failure(
        ErrorKind::already_exists,
        fmt::format("the machine '{}' has a reference point '{}' already", machine, refpoint));
  }
  CO_TRY(co_await check_unused(services, found));
  CO_TRY(co_await check_name_free(services, checkpointed_volumes(found.disks), refpoint,
                                  PointKind::refpoint));
  found.phase = Phase::converting;
  found.refpoint = refpoint;
  CO_TRY(co_await save(services, machine, found));
  fault_point("converting.recorded");
  CO_TRY(co_await finish_conversion(services, machine, found));
  co_await services.machines.rest(machine);
  services.events.publish("refpoint_created", {.machine = machine}, refpoint);
  co_return shown_refpoint(CO_TRY(points.refpoint(refpoint)), machine);
}

// --- Going back.

namespace {

Async<Result<void>> revert_disks(Services& services, MachineCheckpoint checkpoint,
                                 std::shared_ptr<JobProgress> job) {
  for (const std::string& volume : checkpointed_volumes(checkpoint.disks)) {
    auto keeper = CO_TRY(co_await services.keepers.use(volume));
    CallOptions options = call_for(job, fmt::format("reverting {}", volume));
    options.stop = {};  // half of a machine's disks reverted is worse than all of them
    CO_TRY(
        co_await keeper.call("checkpoint.revert", {{"name", checkpoint.name}}, std::move(options)));
    fault_point("reverting.part");
  }
  co_return Result<void>();
}

/// Whether its memory can go on in the machine as it is now.
Result<void> check_stamp(const MachineCheckpoint& checkpoint,
                         const machine::MachineRecord& record) {
  const auto& specification = record.specification;
  const auto& stamp = checkpoint.stamp;
  std::string differs;
  if (stamp.machine_type != specification.machine_type) differs = "machine type";
  if (stamp.cpu_model != specification.cpu_model) differs = "CPU model";
  if (stamp.memory != specification.memory) differs = "size of the memory";
  if (stamp.cpus != specification.cpus) differs = "number of CPUs";
  if (checkpoint.disks != record.disks) differs = "disks";
  if (differs.empty()) return {};
  return failure(
      ErrorKind::precondition,
      fmt::format("the memory of the checkpoint '{}' does not fit: the machine's {} is another "
                  "now. Bring it back, or revert with --disks-only",
                  checkpoint.name, differs));
}

}  // namespace

Async<Result<void>> revert_machine(Services& services, RevertWish wish,
                                   std::shared_ptr<JobProgress> job) {
  const MachinePoints points({services.state_dir}, wish.machine);
  const bool was_running = services.machines.is_on(wish.machine);
  const bool was_hibernated = !was_running && services.machines.is_hibernated(wish.machine);
  if (was_hibernated && !wish.force) CO_TRY(services.machines.check_not_hibernated(wish.machine));
  if (was_running && !wish.force) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("the machine '{}' is running: stop it first, or revert with --force",
                    wish.machine));
  }
  MachineCheckpoint checkpoint;
  {
    const TakenMachine taken = CO_TRY(co_await take_machine(services, wish.machine));
    checkpoint = CO_TRY(points.checkpoint(wish.checkpoint));
    if (checkpoint.memory && !wish.disks_only) CO_TRY(check_stamp(checkpoint, taken.record));
    for (const std::string& volume : checkpointed_volumes(checkpoint.disks))
      CO_TRY(co_await find_point(services, volume, checkpoint.name, PointKind::checkpoint));
  }
  if (was_running || was_hibernated)
    CO_TRY(co_await services.machines.stop(wish.machine, Milliseconds(0)));
  fault_point("reverting.stopped");
  {
    const auto lock = co_await services.machines.lock(wish.machine);
    CO_TRY(services.machines.check_not_hibernated(wish.machine));
    if (services.machines.is_on(wish.machine))
      co_return failure(ErrorKind::in_use,
                        fmt::format("somebody has started the machine '{}'", wish.machine));
    CO_TRY(co_await on_points(
        services, wish.machine,
        [name = checkpoint.name](const MachinePoints& all) { return all.set_reverting(name); }));
    fault_point("reverting.recorded");
    CO_TRY(co_await revert_disks(services, checkpoint, job));
    fault_point("reverting.parts");
    CO_TRY(co_await on_points(services, wish.machine,
                              [name = checkpoint.name](const MachinePoints& all) -> Result<void> {
                                TRY(all.set_current(name));
                                fault_point("reverting.current");
                                return all.set_reverting("");
                              }));
    fault_point("reverting.done");
  }
  services.events.publish("machine_reverted", {.machine = wish.machine}, checkpoint.name);
  if (checkpoint.memory && !wish.disks_only) {
    job->report("loading the memory", 0, 0);
    const std::string directory = points.checkpoint_directory(checkpoint.name);
    co_return co_await services.machines.start(wish.machine,
                                               {.suspended = checkpoint.suspended,
                                                .memory = directory + "/memory",
                                                .devices = directory + "/devices",
                                                .qemu = checkpoint.stamp.qemu,
                                                .accelerator = checkpoint.stamp.accelerator});
  }
  if (was_running) co_return co_await services.machines.start(wish.machine, {});
  co_return Result<void>();
}

Async<Result<Json>> export_checkpoint(Services& services, std::string machine,
                                      std::string checkpoint, std::string directory,
                                      std::string since, std::shared_ptr<JobProgress> job) {
  const MachinePoints points({services.state_dir}, machine);
  const MachineCheckpoint found = CO_TRY(points.checkpoint(checkpoint));
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error)
    co_return errno_failure(error.value(),
                            fmt::format("cannot make the directory '{}'", directory));
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;
  bool exact = true;
  for (const machine::MachineDisk& disk : found.disks) {
    if (!is_checkpointed(disk)) continue;
    auto keeper = CO_TRY(co_await services.keepers.use(disk.volume));
    const std::string name = machine::disk_name(disk.node);
    Json request = {{"name", checkpoint}, {"to", fmt::format("{}/{}.raw", directory, name)}};
    if (!since.empty()) request["since"] = since;
    const Json part = CO_TRY(co_await keeper.call(
        "checkpoint.export", std::move(request), call_for(job, fmt::format("exporting {}", name))));
    extents += part.value("extents", std::uint64_t{0});
    bytes += part.value("bytes", std::uint64_t{0});
    exact = exact && part.value("exact", true);
  }
  co_await services.machines.rest(machine);
  co_return Json{{"path", directory},
                 {"since", since.empty() ? Json() : Json(since)},
                 {"extents", extents},
                 {"bytes", bytes},
                 {"exact", exact}};
}

}  // namespace berth::control
