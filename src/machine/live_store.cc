#include "machine/live_store.h"

#include <cerrno>
#include <filesystem>

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "base/checksum.h"

namespace berth::machine {
namespace {

constexpr const char* shared_memory_directory = "/dev/shm";
constexpr int open_attempts_max = 5;

Result<bool> is_memory(const std::string& path) {
  struct statfs file_system{};
  if (::statfs(path.c_str(), &file_system) != 0) {
    return errno_failure(errno, fmt::format("cannot look at the file system of '{}'", path));
  }
  return file_system.f_type == TMPFS_MAGIC || file_system.f_type == RAMFS_MAGIC;
}

/// In a place where everybody may make directories: ours and nobody else's.
Result<void> make_private_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return errno_failure(errno, fmt::format("cannot make the directory '{}'", path));
  }
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid() || (status.st_mode & 077) != 0) {
    return failure(ErrorKind::precondition,
                   fmt::format("'{}' is not a directory of this user's alone: remove it", path));
  }
  return {};
}

}  // namespace

Result<std::string> live_directory(const RunLayout& run, const std::string& volume) {
  TRY(make_directories(run.run_dir));
  if (TRY(is_memory(run.run_dir))) return fmt::format("{}/{}", run.live(), volume);
  if (!TRY(is_memory(shared_memory_directory))) {
    return failure(ErrorKind::precondition,
                   fmt::format("neither '{}' nor '{}' is on a tmpfs, where live maps must be",
                               run.run_dir, shared_memory_directory));
  }
  std::error_code error;
  const std::string canonical = std::filesystem::canonical(run.run_dir, error);
  if (error) return errno_failure(error.value(), fmt::format("cannot resolve '{}'", run.run_dir));
  const std::string ours =
      fmt::format("{}/berth-{:016x}", shared_memory_directory, checksum64(as_bytes(canonical)));
  TRY(make_private_directory(ours));
  return fmt::format("{}/{}", ours, volume);
}

Result<std::unique_ptr<FileSharedMemoryStore>> open_live_store(const RunLayout& run,
                                                               const std::string& volume) {
  for (int attempt = 1;; ++attempt) {
    const std::string path = TRY(live_directory(run, volume));
    auto store = FileSharedMemoryStore::create_at(path);
    // Another keeper may have removed the directory above meanwhile, as the last one in it; and who
    // has made it anew is looked at once more.
    if (!store && store.error().kind() == ErrorKind::not_found && attempt < open_attempts_max)
      continue;
    if (store) TRY(live_directory(run, volume));
    return store;
  }
}

void release_live_store(const RunLayout& run, const std::string& volume) {
  const auto path = live_directory(run, volume);
  if (!path || (::rmdir(path->c_str()) != 0 && errno != ENOENT)) return;
  const std::string parent = std::filesystem::path(*path).parent_path();
  if (parent != run.live()) ::rmdir(parent.c_str());
}

Result<void> remove_live_store(const RunLayout& run, const std::string& volume) {
  const std::string path = TRY(live_directory(run, volume));
  std::error_code error;
  for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    std::filesystem::remove(entry->path(), error);
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return errno_failure(error.value(), fmt::format("cannot remove what is in '{}'", path));
  }
  release_live_store(run, volume);
  return {};
}

}  // namespace berth::machine
