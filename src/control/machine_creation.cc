#include "control/machine_creation.h"

#include <filesystem>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "control/keeper_job.h"
#include "control/machines.h"
#include "control/spawn.h"
#include "machine/layout.h"
#include "machine/vm/cloud_init_seed.h"
#include "machine/vm/machine_store.h"
#include "machine/volume_directory.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using machine::MachineSpecification;
using Claim = machine::MachineStore::Claim;

constexpr const char* seed_disk = "seed";

Result<void> check_file(const std::string& what, const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("the {} '{}' cannot be used", what, path));
  if (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)) return {};
  return failure(ErrorKind::invalid_argument, fmt::format("the {} '{}' is no file", what, path));
}

/// Everything that is to be made: the disks with the volumes for them.
struct Plan {
  std::vector<machine::MachineDisk> disks;
  std::vector<machine::VolumeCreateRequest> volumes;  // of its own
};

Plan plan_of(const MachineSpecification& specification, const std::string& seed_image) {
  using Kind = machine::AttachedDisk::Kind;
  Plan plan;
  std::uint8_t slot = 0;
  for (const machine::DiskSpecification& disk : specification.disks) {
    machine::MachineDisk made{.node = machine::disk_node(disk.name),
                              .volume = disk.volume,
                              .own = disk.volume.empty(),
                              .read_only = disk.read_only,
                              .slot = slot++};
    if (made.own) {
      made.volume = machine::own_volume_name(specification.name, disk.name);
      machine::VolumeCreateRequest request{.name = made.volume, .size = disk.size};
      if (disk.block_size != 0) request.block_size = disk.block_size;
      (disk.over_image ? request.backing : request.import) = disk.image;
      plan.volumes.push_back(std::move(request));
    }
    plan.disks.push_back(std::move(made));
  }
  const auto add_drive = [&](const std::string& name, const std::string& image, Kind kind,
                             std::uint8_t place) {
    machine::VolumeCreateRequest request{.name =
                                             machine::own_volume_name(specification.name, name)};
    // A seed is the machine's own; an image is somebody's, and stays where it is.
    (kind == Kind::seed ? request.import : request.backing) = image;
    plan.disks.push_back({.node = name,
                          .volume = request.name,
                          .own = true,
                          .read_only = true,
                          .kind = kind,
                          .slot = place});
    plan.volumes.push_back(std::move(request));
  };
  for (std::size_t i = 0; i < specification.cdroms.size(); ++i)
    add_drive(fmt::format("cdrom-{}", i), specification.cdroms[i].image, Kind::cdrom,
              static_cast<std::uint8_t>(i));
  if (!seed_image.empty()) add_drive(seed_disk, seed_image, Kind::seed, 0);
  return plan;
}

Result<void> copy_boot_files(const MachineSpecification& specification,
                             const std::string& directory) {
  if (specification.kernel.image.empty()) return {};
  std::error_code error;
  std::filesystem::create_directories(directory + "/boot", error);
  const auto copy = [&](const std::string& from, const char* name) -> Result<void> {
    if (from.empty()) return {};
    const std::string to = fmt::format("{}/boot/{}", directory, name);
    std::filesystem::copy_file(from, to, error);
    if (error)
      return errno_failure(error.value(), fmt::format("cannot copy '{}' to '{}'", from, to));
    return {};
  };
  TRY(copy(specification.kernel.image, "kernel"));
  return copy(specification.kernel.initrd, "initrd");
}

/// A machine's directory that is being filled, and what is to be made for it.
struct Begun {
  std::shared_ptr<Claim> claim;
  Plan plan;
};

std::string seed_path(const Claim& claim) { return claim.path() + "/seed.iso"; }

Result<Begun> begin(const machine::MachineStore& store, const machine::MachineRecord& record) {
  const MachineSpecification& specification = record.specification;
  Begun begun{.claim = std::make_shared<Claim>(TRY(store.claim(specification.name))), .plan = {}};
  std::string seed;
  if (specification.cloud_init) {
    seed = seed_path(*begun.claim);
    TRY(machine::write_seed_image(*specification.cloud_init, specification.name, record.id, seed));
  }
  begun.plan = plan_of(specification, seed);
  std::vector<std::string> names;
  for (const machine::VolumeCreateRequest& volume : begun.plan.volumes)
    names.push_back(volume.name);
  TRY(begun.claim->plan(names));
  return begun;
}

Async<Result<void>> make(Services& services, machine::MachineRecord record,
                         std::shared_ptr<JobProgress> job) {
  const machine::MachineStore store(services.state_dir);
  Begun begun = CO_TRY(
      co_await on_worker(services.workers, [store, record] { return begin(store, record); }));
  for (machine::VolumeCreateRequest& volume : begun.plan.volumes) {
    job->report(fmt::format("making the disk {}", volume.name), 0, 0);
    CO_TRY(co_await services.volumes.create(std::move(volume), work_for(services, job)));
  }
  record.disks = std::move(begun.plan.disks);
  const auto claim = begun.claim;
  CO_TRY(co_await on_worker(services.workers, [record, claim]() -> Result<void> {
    ::unlink(seed_path(*claim).c_str());
    TRY(copy_boot_files(record.specification, claim->path()));
    TRY(claim->publish(record));
    return {};
  }));
  co_return Result<void>();
}

}  // namespace

Async<Result<void>> check_creation(Services& services, MachineSpecification specification) {
  const std::string& name = specification.name;
  if (co_await services.machines.record(name)) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a machine '{}' already", name));
  }
  if (services.volumes.check_exists(name)) {
    co_return failure(
        ErrorKind::already_exists,
        fmt::format("there is a volume '{}': a machine of the same name could not be told "
                    "from it",
                    name));
  }
  if (name.size() > machine::machine_name_length_max) {
    co_return failure(ErrorKind::invalid_argument,
                      fmt::format("the name of a machine has at most {} characters",
                                  machine::machine_name_length_max));
  }
  if (!specification.kernel.image.empty()) CO_TRY(check_file("kernel", specification.kernel.image));
  if (!specification.kernel.initrd.empty())
    CO_TRY(check_file("initrd", specification.kernel.initrd));
  for (const machine::CdromSpecification& cdrom : specification.cdroms)
    CO_TRY(check_file("CD image", cdrom.image));
  for (const machine::DiskSpecification& disk : specification.disks) {
    if (!disk.image.empty()) CO_TRY(check_file("disk image", disk.image));
    if (disk.volume.empty()) {
      const std::string own = machine::own_volume_name(name, disk.name);
      if (services.volumes.check_exists(own)) {
        co_return failure(ErrorKind::already_exists,
                          fmt::format("there is a volume '{}' already, where a disk of the machine "
                                      "would be",
                                      own));
      }
      continue;
    }
    CO_TRY(services.volumes.check_exists(disk.volume));
    for (const machine::MachineRecord& other : CO_TRY(co_await services.machines.list())) {
      for (const machine::MachineDisk& theirs : other.disks) {
        if (theirs.volume == disk.volume && theirs.own) {
          co_return failure(ErrorKind::in_use,
                            fmt::format("the disk '{}' (volume '{}') is the machine '{}''s own",
                                        disk.name, disk.volume, other.specification.name));
        }
      }
    }
  }
  co_return Result<void>();
}

Async<Result<Json>> create_machine(Services& services, MachineSpecification specification,
                                   std::shared_ptr<JobProgress> job) {
  machine::MachineRecord record{.id = SystemRandom().id(),
                                .specification = std::move(specification),
                                .created_at = format_time(std::chrono::system_clock::now())};
  machine::complete(record.specification, record.id);
  const std::string name = record.specification.name;
  auto made = co_await make(services, std::move(record), std::move(job));
  if (!made) {
    co_return failure(
        std::move(made).error().with_context(fmt::format("cannot make the machine '{}'", name)));
  }
  services.events.publish("machine_created", {.machine = name}, "");
  co_return co_await shown_machine(services, name);
}

Async<Result<std::vector<AsyncMutex::Lock>>> close_disks(Services& services,
                                                         machine::MachineRecord record) {
  const std::string& name = record.specification.name;
  if (services.machines.is_on(name)) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' is running: stop it first", name));
  }
  CO_TRY(services.machines.check_not_hibernated(name));
  std::vector<AsyncMutex::Lock> closed;
  for (const machine::MachineDisk& disk : record.disks)
    if (disk.own) closed.push_back(CO_TRY(co_await services.keepers.close(disk.volume)));
  co_return closed;
}

Async<Result<void>> delete_machine(Services& services, std::string name) {
  CO_TRY(co_await services.machines.record(name));
  const auto lock = co_await services.machines.lock(name);
  const auto record = CO_TRY(co_await services.machines.record(name));
  CO_TRY(
      co_await on_worker(services.workers, [record, state = services.state_dir]() -> Result<void> {
        for (const machine::MachineDisk& disk : record.disks)
          if (disk.own) TRY(machine::check_no_dependents({state}, disk.volume));
        return {};
      }));
  const auto closed = CO_TRY(co_await close_disks(services, record));
  const machine::MachineStore store(services.state_dir);
  CO_TRY(co_await on_worker(services.workers, [store, name] { return store.remove(name); }));
  std::error_code ignored;
  const machine::RunLayout layout{services.run_dir};
  for (const machine::MachineDisk& disk : record.disks) {
    if (!disk.own) continue;
    std::filesystem::remove_all(layout.keeper(disk.volume), ignored);
    (void)co_await services.cuts.mark_resolved(disk.volume);
  }
  std::filesystem::remove_all(layout.machine(name), ignored);
  co_return Result<void>();
}

}  // namespace berth::control
