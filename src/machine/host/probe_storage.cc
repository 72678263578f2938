// probes.h: the state directory and the file system that it lies on.

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/units.h"
#include "machine/host/cgroup_layout.h"
#include "machine/host/probes.h"
#include "machine/host/scratch_file.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t free_space_min = GiB;
constexpr std::uint64_t free_part_min = 20;  // one twentieth
constexpr std::uint64_t read_ahead_max_kib = 1024;

/// Without symbolic links, as mounts are named.
std::string canonical(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> resolved(::realpath(path.c_str(), nullptr),
                                                        std::free);
  return resolved ? resolved.get() : path;
}

bool is_network(std::string_view type) {
  for (const std::string_view name : {"nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "fuse"}) {
    if (type.starts_with(name)) return true;
  }
  return false;
}

Finding no_space_known(int error) {
  return unknown(std::strerror(error), "not known", "See state_directory");
}

}  // namespace

Finding probe_state_directory(const HostView& host) {
  const std::string place = existing_ancestor(host.state_dir);
  const auto file = make_scratch_file(place);
  constexpr const char* cost = "Berth does not work: volumes and the catalogue lie there";
  constexpr const char* remedy = "Run as root, remount it read-write, or: berth --state-dir DIR";
  if (!file) {
    return missing(place == host.state_dir
                       ? fmt::format("{}: {}", place, std::strerror(file.error().errno_value()))
                       : fmt::format("{} is not there and cannot be made: {}: {}", host.state_dir,
                                     place, std::strerror(file.error().errno_value())),
                   cost, remedy);
  }
  if (place == host.state_dir) return found(fmt::format("{} takes files", place));
  return found(fmt::format("{} is not there yet; the daemon can make it", host.state_dir));
}

Finding probe_file_system(const HostView& host) {
  const auto mounts = parse_mountinfo(host.read("/proc/self/mountinfo").value_or(""));
  const Mount* mount = mount_of(mounts, canonical(existing_ancestor(host.state_dir)));
  if (mount == nullptr)
    return unknown("/proc/self/mountinfo does not say", "not known", "Mount /proc");
  std::string detail =
      fmt::format("{} on {}, mounted at {}", mount->type, mount->source, mount->point);
  constexpr const char* remedy = "Put the state directory on ext4, XFS or Btrfs of a local disk";
  if (mount->type == "tmpfs" || mount->type == "ramfs")
    return degraded(std::move(detail), "every volume is gone after a restart", remedy);
  if (mount->type == "overlay")
    return degraded(std::move(detail), "slower, and volumes are gone with the container", remedy);
  if (is_network(mount->type)) {
    return degraded(std::move(detail),
                    "locks, O_DIRECT and holes depend on the server, and so does every write",
                    remedy);
  }
  return found(std::move(detail));
}

Finding probe_free_space(const HostView& host) {
  struct statvfs space{};
  if (::statvfs(existing_ancestor(host.state_dir).c_str(), &space) != 0)
    return no_space_known(errno);
  const std::uint64_t size = std::uint64_t{space.f_blocks} * space.f_frsize;
  const std::uint64_t available = std::uint64_t{space.f_bavail} * space.f_frsize;
  std::string detail = fmt::format("{} of {}", format_size(available), format_size(size));
  if (available >= free_space_min && available >= size / free_part_min)
    return found(std::move(detail));
  return degraded(std::move(detail),
                  "guests' writes fail when it is full; volatile checkpoints are given up first",
                  "Delete checkpoints or volumes, or enlarge the file system");
}

/// Linux, Documentation/ABI/stable/sysfs-block. Of a partition it is its disk's.
Finding probe_read_ahead(const HostView& host) {
  constexpr const char* cost =
      "a page that a parked guest comes to brings that much from the disk: many that are resumed "
      "at once wait for each other";
  struct stat status{};
  if (::stat(existing_ancestor(host.state_dir).c_str(), &status) != 0) return no_space_known(errno);
  const std::string device =
      fmt::format("/sys/dev/block/{}:{}", major(status.st_dev), minor(status.st_dev));
  for (const char* queue : {"/queue", "/../queue"}) {
    const std::string setting = fmt::format("{}{}/read_ahead_kb", device, queue);
    const auto amount = host.read_number(setting);
    if (!amount) continue;
    std::string detail = format_size(*amount * KiB);
    if (*amount <= read_ahead_max_kib) return found(std::move(detail));
    return degraded(std::move(detail), cost,
                    fmt::format("echo 512 >{}; for good, by a udev rule with "
                                "ATTR{{queue/read_ahead_kb}}=\"512\"",
                                setting));
  }
  return unknown("the state directory is on no disk of this host", cost,
                 "See what its file system reads ahead");
}

Finding probe_inodes(const HostView& host) {
  struct statvfs space{};
  if (::statvfs(existing_ancestor(host.state_dir).c_str(), &space) != 0)
    return no_space_known(errno);
  if (space.f_files == 0) return found("made as they are needed");
  std::string detail = fmt::format("{} of {} free", space.f_favail, space.f_files);
  if (space.f_favail >= space.f_files / free_part_min) return found(std::move(detail));
  return degraded(std::move(detail), "no new volume and no checkpoint when there are none left",
                  "Remove files, or make the file system anew with more inodes");
}

Finding probe_file_locks(const HostView& host) {
  const auto file = make_state_scratch_file(host.state_dir);
  constexpr const char* cost =
      "Berth does not work: nothing keeps two processes off the same volume";
  if (!file) return unknown(file.error().message(), cost, "See state_directory");
  // A second description of the same file must be kept out.
  const Fd again(::open(fmt::format("/proc/self/fd/{}", file->get()).c_str(), O_RDWR | O_CLOEXEC));
  if (::flock(file->get(), LOCK_EX | LOCK_NB) != 0) {
    return missing(fmt::format("flock: {}", std::strerror(errno)), cost,
                   "Put the state directory on a local file system");
  }
  if (again && ::flock(again.get(), LOCK_EX | LOCK_NB) == 0) {
    return missing("two locks of one file were granted", cost,
                   "Put the state directory on a local file system");
  }
  return found("a locked file is kept from others");
}

}  // namespace berth::machine
