#include "agent/program/disks.h"

#include <cerrno>
#include <memory>
#include <ranges>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

constexpr std::size_t mounts_max = 64;
constexpr std::uint64_t unchanged = UINT32_MAX;  // an owner, to chown(2)

std::string through(const Fd& directory) {
  return "/proc/self/fd/" + std::to_string(directory.get());
}

Result<void> make_directories(const std::string& path) {
  for (std::size_t end = 0; end < path.size();) {
    end = std::min(path.find('/', end + 1), path.size());
    const std::string directory = path.substr(0, end);
    if (::mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
      return errno_failure(errno, "cannot make " + directory);
    }
  }
  return {};
}

/// What a new volume's root has to be; every field may be missing.
Result<void> change_root(const Fd& root, const std::string& path, const Fields& fields) {
  const std::uint64_t owner = TRY(fields.number_or(Tag::owner, unchanged));
  const std::uint64_t group = TRY(fields.number_or(Tag::group, unchanged));
  if ((owner != unchanged || group != unchanged) &&
      ::fchown(root.get(), static_cast<uid_t>(owner), static_cast<gid_t>(group)) != 0) {
    return errno_failure(errno, "cannot give away " + path);
  }
  if (!fields.has(Tag::mode)) return {};
  const std::uint64_t mode = TRY(fields.number(Tag::mode));
  if (::fchmod(root.get(), static_cast<mode_t>(mode & 07777)) != 0) {
    return errno_failure(errno, "cannot change the mode of " + path);
  }
  return {};
}

}  // namespace

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(directory.c_str()), &::closedir);
  if (!open) return names;
  while (const dirent* entry = ::readdir(open.get())) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  return names;
}

std::string find_disk(const std::string& serial) {
  for (const std::string& name : names_in("/sys/block")) {
    if (read_line("/sys/block/" + name + "/serial") == serial) return "/dev/" + name;
  }
  return {};
}

Result<void> Mounts::mount(const Fields& fields) {
  const std::string serial = TRY(fields.text(Tag::serial));
  const std::string path = TRY(fields.text(Tag::path));
  const std::string type = TRY(fields.text_or(Tag::file_system, "ext4"));
  const std::uint64_t flags = TRY(fields.number_or(Tag::flags, 0));
  if (!path.starts_with('/') || path.find_first_not_of('/') == std::string::npos) {
    return failure(ErrorKind::invalid_argument, "nothing can be mounted at '" + path + "'");
  }
  if ((flags & ~mount_read_only) != 0) {
    return failure(ErrorKind::invalid_argument, "there is no such flag of a mount");
  }
  if (roots_.size() >= mounts_max) {
    return failure(ErrorKind::limit, std::to_string(mounts_max) + " disks are mounted");
  }
  // A disk without a serial number is nobody's.
  const std::string disk = serial.empty() ? "" : find_disk(serial);
  if (disk.empty()) {
    return failure(ErrorKind::not_found, "there is no disk with the serial number " + serial);
  }
  TRY(make_directories(path));
  const unsigned long options = (flags & mount_read_only) != 0 ? MS_RDONLY : 0;
  if (::mount(disk.c_str(), path.c_str(), type.c_str(), options, "") != 0) {
    if (errno == ENODEV) {
      return failure(ErrorKind::unsupported, "the kernel has no file system '" + type + "'");
    }
    return errno_failure(errno, "cannot mount " + serial + " at " + path + " as " + type);
  }
  Fd root(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  auto changed = root ? change_root(root, path, fields)
                      : Result<void>(errno_failure(errno, "cannot open " + path));
  if (!changed) {
    root.reset();
    ::umount2(path.c_str(), MNT_DETACH);
    return changed;
  }
  roots_.push_back(std::move(root));
  return {};
}

void Mounts::leave() {
  ::sync();
  for (const Fd& root : std::views::reverse(roots_)) {
    ::mount(nullptr, through(root).c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr);
  }
}

}  // namespace berth::agent
