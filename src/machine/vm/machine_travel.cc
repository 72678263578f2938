#include "machine/vm/machine_travel.h"

#include <algorithm>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "async/uring_loop.h"
#include "machine/departure.h"
#include "machine/small_file.h"
#include "machine/vm/machine_points.h"
#include "machine/volume_directory.h"
#include "machine/volume_travel.h"

namespace berth::machine {
namespace {

/// One ordinary file, with its holes, durable. Links and oddities are refused.
Result<void> copy_file(const std::string& from, const std::string& to) {
  struct stat status{};
  if (::lstat(from.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", from));
  if (!S_ISREG(status.st_mode))
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no ordinary file", from));
  const Fd source(::open(from.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  const Fd target(::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!source || !target)
    return errno_failure(errno, fmt::format("cannot copy '{}' to '{}'", from, to));
  off_t at = 0;
  while (at < status.st_size) {
    const off_t data = ::lseek(source.get(), at, SEEK_DATA);
    if (data < 0) break;  // only a hole is left
    const off_t end = std::min<off_t>(::lseek(source.get(), data, SEEK_HOLE), status.st_size);
    off_t in = data;
    off_t out = data;
    while (in < end) {
      const ssize_t count = ::copy_file_range(source.get(), &in, target.get(), &out,
                                              static_cast<std::size_t>(end - in), 0);
      if (count > 0) continue;
      return errno_failure(count == 0 ? EIO : errno,
                           fmt::format("cannot copy '{}' to '{}'", from, to));
    }
    at = end;
  }
  if (::ftruncate(target.get(), status.st_size) != 0 || ::fsync(target.get()) != 0)
    return errno_failure(errno, fmt::format("cannot write '{}'", to));
  return {};
}

/// The files of this one directory that have one of these names; it need not be there.
Result<void> copy_files(const std::string& from, const std::string& to,
                        const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const std::string source = fmt::format("{}/{}", from, name);
    if (path_exists(source)) TRY(copy_file(source, fmt::format("{}/{}", to, name)));
  }
  return sync_directory(to);
}

/// A directory below that may be missing, and is no link.
Result<bool> make_twin(const std::string& from, const std::string& to) {
  struct stat status{};
  if (::lstat(from.c_str(), &status) != 0 && errno == ENOENT) return false;
  if (!S_ISDIR(status.st_mode))
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no directory", from));
  TRY(make_directories(to));
  return true;
}

/// Everything but the disks and machine.json.
Result<void> copy_around(const std::string& from, const std::string& to) {
  TRY(copy_files(from, to, {"state.json", "current", "reverting"}));
  if (TRY(make_twin(from + "/boot", to + "/boot")))
    TRY(copy_files(from + "/boot", to + "/boot", {"kernel", "initrd"}));
  if (TRY(make_twin(from + "/refpoints", to + "/refpoints")))
    TRY(copy_files(from + "/refpoints", to + "/refpoints", names_in(from + "/refpoints")));
  if (!TRY(make_twin(from + "/checkpoints", to + "/checkpoints"))) return {};
  for (const std::string& name : names_in(from + "/checkpoints")) {
    TRY(check_point_name("checkpoint", name));
    const std::string inner = "/checkpoints/" + name;
    if (TRY(make_twin(from + inner, to + inner)))
      TRY(copy_files(from + inner, to + inner, {"checkpoint.json", "memory", "devices"}));
  }
  return {};
}

std::string own_disk_name(const MachineRecord& record, const MachineDisk& disk) {
  return disk.volume.substr(record.specification.name.size() + 1);
}

Result<MachineRecord> read_record(const std::string& directory) {
  const std::string path = directory + "/machine.json";
  auto text = read_small_file(path);
  if (!text && text.error().kind() == ErrorKind::not_found) {
    return failure(
        ErrorKind::not_found,
        fmt::format("'{}' is no machine's directory: it has no machine.json", directory));
  }
  if (!text) return failure(std::move(text).error());
  const Json json = TRY(parse_json(*text));
  MachineRecord record = TRY(decode_machine_record(json));
  const std::string prefix = record.specification.name + '.';
  for (const MachineDisk& disk : record.disks) {
    const bool named = disk.volume.starts_with(prefix) && is_valid_name(disk.volume) &&
                       is_valid_name(disk.volume.substr(prefix.size()));
    if (disk.own && !named)
      return failure(ErrorKind::corrupt,
                     fmt::format("'{}' names a disk of its own '{}'", path, disk.volume));
  }
  return record;
}

/// The records of its checkpoints and reference points name volumes: by the machine's new name.
Result<void> rename_points(const StateLayout& claimed, const std::string& claim,
                           const std::string& from, const std::string& to,
                           const std::vector<MachineDisk>& disks) {
  const MachinePoints points(claimed, claim);
  const auto renamed = [&](std::string& volume, bool own) {
    if (own && volume.starts_with(from + '.'))
      volume = own_volume_name(to, volume.substr(from.size() + 1));
  };
  for (MachineCheckpoint& checkpoint : TRY(points.checkpoints())) {
    for (MachineDisk& disk : checkpoint.disks) renamed(disk.volume, disk.own);
    TRY(points.save(checkpoint));
  }
  for (MachineRefpoint& refpoint : TRY(points.refpoints())) {
    for (MachineRefpointPart& part : refpoint.parts) {
      const bool own = std::ranges::any_of(disks, [&](const MachineDisk& disk) {
        return disk.own && disk.node == disk_node(part.disk);
      });
      renamed(part.volume, own);
    }
    TRY(points.save(refpoint));
  }
  return {};
}

}  // namespace

Result<ExportedMachine> export_machine(const StateLayout& state, const std::string& machine,
                                       const std::string& to, const VolumeJob& job) {
  const MachineRecord record = TRY(MachineStore(state.state_dir).record(machine));
  const auto copy = [&]() -> Result<ExportedMachine> {
    Departure departure = TRY(
        Departure::begin(state, to, {.what = "machine", .home = state.machines(), .noun = "vm"}));
    ExportedMachine exported{.path = departure.to()};
    const std::string from = state.machine(machine);
    TRY(copy_around(from, departure.path()));
    const auto loop = TRY(UringLoop::create());
    VolumeJobObserver observer(job, "the export");
    for (const MachineDisk& disk : record.disks) {
      if (!disk.own) continue;
      const std::string name = own_disk_name(record, disk);
      const std::string target = fmt::format("{}/disks/{}", departure.path(), name);
      TRY(make_directories(target));
      const CopiedVolume copied = TRY(loop->run_until_complete(
          copy_volume_directory(*loop, state.machine_disk(machine, name), target, observer, {})));
      exported.bytes += copied.bytes;
    }
    TRY(copy_files(from, departure.path(), {"machine.json"}));
    TRY(observer.check());
    TRY(departure.publish());
    return exported;
  };
  auto exported = copy();
  if (exported) return exported;
  return failure(std::move(exported).error().with_context(
      fmt::format("cannot export the machine '{}'", machine)));
}

Result<ImportedMachine> import_machine(const StateLayout& state, const MachineImport& request,
                                       const VolumeJob& job) {
  const MachineRecord arriving = TRY(read_record(request.from));
  const std::string was = arriving.specification.name;
  const bool copied = request.arrival == disk::Arrival::copied;
  const MachineStore store(state.state_dir);
  ImportedMachine imported{.record = arriving, .void_refpoints = {}};
  MachineRecord& record = imported.record;
  if (!request.name.empty()) record.specification.name = request.name;
  const std::string name = record.specification.name;
  if (!copied) {
    for (const MachineRecord& other : TRY(store.list())) {
      if (other.id != record.id) continue;
      return failure(
          ErrorKind::already_exists,
          fmt::format("the machine '{}' of this host is this very machine: what is here twice was "
                      "copied, not moved",
                      other.specification.name));
    }
  }
  auto claim = TRY(store.claim(name));
  // The claim is a machine's directory already, for what works on one.
  const std::string claimed = claim.path().substr(claim.path().rfind('/') + 1);
  const auto take = [&]() -> Result<void> {
    TRY(copy_around(request.from, claim.path()));
    const auto loop = TRY(UringLoop::create());
    VolumeJobObserver observer(job, "the import");
    for (MachineDisk& disk : record.disks) {
      if (!disk.own) {
        if (path_exists(state.volume(disk.volume))) continue;
        return failure(ErrorKind::precondition,
                       fmt::format("its disk '{}' is the volume '{}', which is not "
                                   "here and does not travel with it",
                                   disk.node, disk.volume));
      }
      const std::string own = own_disk_name(arriving, disk);
      const std::string to = fmt::format("{}/disks/{}", claim.path(), own);
      disk.volume = own_volume_name(name, own);
      if (path_exists(state.volume(disk.volume)))
        return failure(ErrorKind::already_exists,
                       fmt::format("there is a volume '{}' already", disk.volume));
      TRY(make_directories(to));
      TRY(loop->run_until_complete(
          copy_volume_directory(*loop, fmt::format("{}/disks/{}", request.from, own), to, observer,
                                {.arrival = request.arrival, .keep_modes = false})));
      const ArrivedVolume arrived = TRY(loop->run_until_complete(import_volume_directory(
          *loop, to, disk.volume, request.arrival, [&state](const ArrivingVolume& volume) {
            return check_backing_is_here(state, volume);
          })));
      for (const std::string& point : arrived.settled.void_refpoints)
        imported.void_refpoints.push_back(fmt::format("{}@{}", disk.volume, point));
    }
    if (copied) {
      record.id = SystemRandom().id();
      for (NetworkSpecification& network : record.specification.networks) network.mac.clear();
      complete(record.specification, record.id);
    }
    if (was != name) TRY(rename_points(state, claimed, was, name, record.disks));
    record = TRY(claim.publish(record));
    return {};
  };
  auto taken = take();
  if (!taken)
    return failure(
        std::move(taken).error().with_context(fmt::format("cannot import the machine '{}'", name)));
  return imported;
}

}  // namespace berth::machine
