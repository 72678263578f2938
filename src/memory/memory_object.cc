#include "memory/memory_object.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <utility>

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/units.h"
#include "memory/memory_file.h"

namespace berth::memory {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t status_block = 512;  // of st_blocks, stat(2)
constexpr mode_t passage = 0711;
constexpr mode_t sealed = 0444;

std::string directory_of(const std::string& memory_dir, const Id128& id) {
  return fmt::format("{}/{}", memory_dir, id.to_string());
}

/// Whatever the umask is. One that is there stays as it is.
Result<void> make_passage(const std::string& path) {
  if (::mkdir(path.c_str(), passage) != 0)
    return errno_failure(errno, fmt::format("cannot make the directory '{}'", path));
  if (::chmod(path.c_str(), passage) != 0)
    return errno_failure(errno, fmt::format("cannot open the directory '{}' to QEMU", path));
  return {};
}

Result<void> check_size(std::uint64_t size) {
  if (size != 0 && size % page_size == 0) return {};
  return failure(
      ErrorKind::invalid_argument,
      fmt::format("a memory object cannot have {} bytes: take a multiple of {}", size, page_size));
}

Result<struct statfs> look_at(const std::string& memory_dir) {
  struct statfs file_system{};
  if (::statfs(memory_dir.c_str(), &file_system) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", memory_dir));
  if (file_system.f_type != TMPFS_MAGIC) {
    return failure(
        ErrorKind::unsupported,
        fmt::format("'{}' is not on a tmpfs, where memory of machines has to be", memory_dir));
  }
  return file_system;
}

/// What the memory objects of the directory may still take.
std::uint64_t promised(const std::string& memory_dir) {
  std::uint64_t sum = 0;
  std::error_code error;
  for (fs::directory_iterator entry(memory_dir, error), end; !error && entry != end;
       entry.increment(error)) {
    struct stat status{};
    const std::string path = entry->path().string() + "/ram";
    if (::lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    const auto size = static_cast<std::uint64_t>(status.st_size);
    const auto taken = static_cast<std::uint64_t>(status.st_blocks) * status_block;
    sum += size - std::min(size, taken);
  }
  return sum;
}

/// The new one is there already, so that of two that are made at once at least one sees the other.
Result<void> check_space(const std::string& memory_dir, std::uint64_t size) {
  const auto file_system = TRY(look_at(memory_dir));
  if (file_system.f_blocks == 0) return {};  // a tmpfs without a limit
  const auto block = static_cast<std::uint64_t>(file_system.f_bsize);
  const std::uint64_t total = block * file_system.f_blocks;
  const std::uint64_t available = block * file_system.f_bavail;
  if (size > total) {
    return failure(ErrorKind::limit,
                   fmt::format("{} of memory do not fit into '{}', which has {} in all: enlarge "
                               "that tmpfs",
                               format_size(size), memory_dir, format_size(total)));
  }
  const std::uint64_t needed = promised(memory_dir);
  if (needed <= available) return {};
  return failure(
      ErrorKind::no_space,
      fmt::format("{} of memory do not fit into '{}' now: it has {} free, and other machines may "
                  "still take {} of that. Stop a machine, or enlarge that tmpfs",
                  format_size(size), memory_dir, format_size(available),
                  format_size(needed - std::min(needed, size))));
}

Result<void> make_file(const std::string& path, std::uint64_t size, MemoryOwner owner) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return errno_failure(errno, fmt::format("cannot make the memory object '{}'", path));
  if (::fchmod(fd.get(), 0600) != 0 || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return errno_failure(errno, fmt::format("cannot make the memory object '{}'", path));
  if ((owner.uid != ::geteuid() || owner.gid != ::getegid()) &&
      ::fchown(fd.get(), owner.uid, owner.gid) != 0) {
    return errno_failure(
        errno, fmt::format("cannot give the memory object '{}' to user {}", path, owner.uid));
  }
  return {};
}

/// fcntl(2), "Leases": one for reading is given only where nobody has the file open for writing,
/// and a mapping keeps it open.
Result<void> check_not_written(const MemoryFile& file) {
  if (::fcntl(file.fd.get(), F_SETLEASE, F_RDLCK) == 0) {
    (void)::fcntl(file.fd.get(), F_SETLEASE, F_UNLCK);
    return {};
  }
  if (errno == EAGAIN) {
    return failure(ErrorKind::in_use,
                   fmt::format("the memory object '{}' cannot be sealed: somebody still writes to "
                               "it. End its machine first",
                               file.path));
  }
  return errno_failure(errno, fmt::format("cannot see who writes to '{}'", file.path));
}

Result<void> set_owner(const MemoryFile& file, uid_t uid, gid_t gid, mode_t mode) {
  if (::fchown(file.fd.get(), uid, gid) == 0 && ::fchmod(file.fd.get(), mode) == 0) return {};
  return errno_failure(errno, fmt::format("cannot seal the memory object '{}'", file.path));
}

}  // namespace

std::string memory_object_path(const std::string& memory_dir, const Id128& id) {
  return directory_of(memory_dir, id) + "/ram";
}

Result<std::string> create_memory_object(const std::string& memory_dir, const Id128& id,
                                         std::uint64_t size, MemoryOwner owner) {
  TRY(check_size(size));
  if (size > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return failure(ErrorKind::limit, fmt::format("no memory object can have {} bytes", size));
  }
  if (auto made = make_passage(memory_dir);
      !made && made.error().kind() != ErrorKind::already_exists)
    return failure(std::move(made).error());
  TRY(look_at(memory_dir));
  TRY(make_passage(directory_of(memory_dir, id)));
  std::string path = memory_object_path(memory_dir, id);
  auto made = make_file(path, size, owner);
  if (made) made = check_space(memory_dir, size);
  if (made) return path;
  (void)remove_memory_object(memory_dir, id);
  return failure(std::move(made).error());
}

Result<void> seal_memory_object(const std::string& memory_file) {
  const auto file = TRY(MemoryFile::open(memory_file, MemoryFile::Access::read));
  struct stat before{};
  if (::fstat(file.fd.get(), &before) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", memory_file));
  // First: so nobody opens it between the look and the seal.
  auto outcome = set_owner(file, ::geteuid(), ::getegid(), sealed);
  if (outcome) outcome = check_not_written(file);
  if (!outcome) (void)set_owner(file, before.st_uid, before.st_gid, before.st_mode & 07777U);
  return outcome;
}

Result<void> remove_memory_object(const std::string& memory_dir, const Id128& id) {
  const std::string path = memory_object_path(memory_dir, id);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return errno_failure(errno, fmt::format("cannot remove the memory object '{}'", path));
  const std::string directory = directory_of(memory_dir, id);
  if (::rmdir(directory.c_str()) != 0 && errno != ENOENT)
    return errno_failure(errno, fmt::format("cannot remove the directory '{}'", directory));
  return {};
}

}  // namespace berth::memory
