#include "machine/volume_directory.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;

// No name of a volume begins with a dot.
constexpr std::string_view creating_prefix = ".creating-";
constexpr std::string_view removing_prefix = ".removing-";
constexpr std::string_view clearing_prefix = ".clearing-";  // a link to a directory elsewhere
constexpr int claim_attempts_max = 100;

bool is_same_file(const Fd& fd, const std::string& path) {
  struct stat opened{};
  struct stat named{};
  return ::fstat(fd.get(), &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

std::string pins_path(const StateLayout& state, const std::string& volume) {
  return state.volume(volume) + "/pins";
}

}  // namespace

bool path_exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    names.push_back(entry->path().filename());
  }
  std::ranges::sort(names);
  return names;
}

Result<void> sync_directory(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0)
    return errno_failure(errno, fmt::format("cannot sync the directory '{}'", path));
  return {};
}

Result<void> remove_tree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return errno_failure(error.value(), fmt::format("cannot remove '{}'", path));
  return {};
}

Result<void> rename_directory(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return {};
  int error = errno;
  if (error == EINVAL && !path_exists(to)) {  // not every file system knows the flag
    if (::rename(from.c_str(), to.c_str()) == 0) return {};
    error = errno;
  }
  return errno_failure(error, fmt::format("cannot give '{}' the name '{}'", from, to));
}

Result<std::optional<Fd>> try_lock(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return errno_failure(errno, fmt::format("cannot open '{}'", path));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
  if (errno == EWOULDBLOCK) return std::nullopt;
  return errno_failure(errno, fmt::format("cannot lock '{}'", path));
}

Result<Fd> take_lock_file(const std::string& path, const std::string& in_use) {
  const Fd made(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!made) return errno_failure(errno, fmt::format("cannot make '{}'", path));
  auto lock = TRY(try_lock(path));
  if (!lock) return failure(ErrorKind::in_use, in_use);
  return std::move(*lock);
}

std::string creating_path(const StateLayout& state, const std::string& volume) {
  return fmt::format("{}/{}{}", state.volumes(), creating_prefix, volume);
}

std::string removing_path(const StateLayout& state, const std::string& volume) {
  return fmt::format("{}/{}{}-{}", state.volumes(), removing_prefix, volume, ::getpid());
}

Result<Fd> claim_directory(const std::string& path, const std::string& what) {
  for (int attempt = 0; attempt < claim_attempts_max; ++attempt) {
    if (::mkdir(path.c_str(), 0700) != 0) {
      if (errno != EEXIST) return errno_failure(errno, fmt::format("cannot make '{}'", path));
      const auto lock = try_lock(path);
      if (lock && !*lock) break;
      if (lock) TRY(remove_tree(path));
      continue;
    }
    // Between the two calls somebody may have taken it for a leftover: then once more.
    Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd && ::flock(fd.get(), LOCK_EX) == 0 && is_same_file(fd, path)) return fd;
  }
  return failure(ErrorKind::in_use, what);
}

Result<std::string> mark_for_clearing(const StateLayout& state, const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  std::string mark =
      fmt::format("{}/{}{}-{}", state.volumes(), clearing_prefix, status.st_dev, status.st_ino);
  // The number may be that of a directory that has gone, with a process that did not clear up.
  (void)::unlink(mark.c_str());
  if (::symlink(path.c_str(), mark.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}'", mark));
  return mark;
}

void clear_leftovers(const StateLayout& state) {
  for (const std::string& name : names_in(state.volumes())) {
    const bool marked = name.starts_with(clearing_prefix);
    if (!marked && !name.starts_with(creating_prefix) && !name.starts_with(removing_prefix))
      continue;
    const std::string path = state.volumes() + '/' + name;
    std::error_code error;
    const std::string directory = marked ? fs::read_symlink(path, error).string() : path;
    const auto lock = try_lock(directory);
    if (lock && *lock) (void)remove_tree(directory);
    if (marked && !path_exists(directory)) ::unlink(path.c_str());
  }
}

Result<void> pin(const StateLayout& state, const std::string& volume, const std::string& checkpoint,
                 const std::string& clone) {
  if (!path_exists(state.volume(volume))) {
    return failure(ErrorKind::not_found,
                   fmt::format("there is no volume '{}' to stand on", volume));
  }
  const std::string parent = fmt::format("{}/{}", pins_path(state, volume), checkpoint);
  TRY(make_directories(parent));
  const std::string path = parent + '/' + clone;
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return errno_failure(errno, fmt::format("cannot make '{}'", path));
  return sync_directory(parent);
}

bool is_pinned(const StateLayout& state, const std::string& volume, const std::string& checkpoint,
               const std::string& clone) {
  return path_exists(fmt::format("{}/{}/{}", pins_path(state, volume), checkpoint, clone));
}

void remove_pins_of(const StateLayout& state, const std::string& clone) {
  for (const std::string& volume : names_in(state.volumes())) {
    const std::string pins = pins_path(state, volume);
    for (const std::string& checkpoint : names_in(pins)) {
      ::unlink(fmt::format("{}/{}/{}", pins, checkpoint, clone).c_str());
      ::rmdir(fmt::format("{}/{}", pins, checkpoint).c_str());  // where it was the last one
    }
  }
}

std::string volume_of_data(const StateLayout& state, const std::string& path) {
  struct stat wanted{};
  if (::stat(path.c_str(), &wanted) != 0) return {};
  for (const std::string& volume : names_in(state.volumes())) {
    struct stat found{};
    if (!is_valid_name(volume) || ::stat((state.volume(volume) + "/data").c_str(), &found) != 0)
      continue;
    const bool both_devices = S_ISBLK(wanted.st_mode) && S_ISBLK(found.st_mode);
    const bool same = both_devices ? wanted.st_rdev == found.st_rdev
                                   : wanted.st_dev == found.st_dev && wanted.st_ino == found.st_ino;
    if (same) return volume;
  }
  return {};
}

std::vector<std::string> dependents_of(const StateLayout& state, const std::string& volume,
                                       const std::string& checkpoint) {
  std::vector<std::string> dependents;
  for (const std::string& pinned : names_in(pins_path(state, volume))) {
    if (!checkpoint.empty() && pinned != checkpoint) continue;
    for (const std::string& clone : names_in(pins_path(state, volume) + '/' + pinned)) {
      // The pin of a volume that was never finished, or has gone since, says nothing.
      const bool is_there =
          path_exists(state.volume(clone)) || path_exists(creating_path(state, clone));
      if (is_there) dependents.push_back(clone);
    }
  }
  return dependents;
}

Result<void> check_no_dependents(const StateLayout& state, const std::string& volume) {
  const auto dependents = dependents_of(state, volume, "");
  if (dependents.empty()) return {};
  return failure(
      ErrorKind::in_use,
      fmt::format("the volume '{}' cannot be removed: the volume '{}' stands on one of its "
                  "checkpoints",
                  volume, dependents.front()));
}

}  // namespace berth::machine
