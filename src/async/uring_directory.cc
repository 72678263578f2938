#include <algorithm>
#include <cerrno>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "async/uring_file.h"
#include "base/aligned_buffer.h"

namespace berth {
namespace {

/// Whether the kernel takes page-aligned direct reads of what was opened with O_DIRECT.
bool direct_reads_work(int fd) {
  const AlignedBuffer page(AlignedBuffer::alignment);
  return ::pread(fd, page.data(), page.size(), 0) >= 0 || errno != EINVAL;
}

Result<Fd> open_at(int directory, const std::string& name, const std::string& path, int flags) {
  Fd fd;
  do {
    fd = Fd(::openat(directory, name.c_str(), flags | O_CLOEXEC | O_NOCTTY, 0600));
  } while (!fd && errno == EINTR);
  if (!fd) return errno_failure(errno, fmt::format("cannot open '{}'", path));
  return fd;
}

/// The flags of open(2), for what lies at the name now.
Result<int> open_flags(int directory, const std::string& name, const std::string& path,
                       OpenOptions options) {
  int flags = options.read_only ? O_RDONLY : O_RDWR;
  if (options.create) flags |= options.exclusive ? O_CREAT | O_EXCL : O_CREAT;
  struct stat status{};
  const bool there = ::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
  if (!there || (flags & O_EXCL) != 0) return flags;
  flags &= ~O_CREAT;  // a dangling link must not make what it points to
  if (::fstatat(directory, name.c_str(), &status, 0) != 0) return flags;
  if (S_ISBLK(status.st_mode)) return options.lock ? flags | O_EXCL : flags;
  if (!S_ISREG(status.st_mode)) {  // opening a FIFO would wait
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is neither a file nor a block device", path));
  }
  return flags;
}

/// With O_DIRECT where that works.
Result<Fd> open_direct(int directory, const std::string& name, const std::string& path, int flags) {
  Result<Fd> fd = open_at(directory, name, path, flags | O_DIRECT);
  if (!fd && fd.error().errno_value() == EINVAL) {
    // Some file systems make the file before they say so.
    const bool made = (flags & O_CREAT) != 0 && ::faccessat(directory, name.c_str(), F_OK, 0) == 0;
    return open_at(directory, name, path, made ? flags & ~(O_CREAT | O_EXCL) : flags);
  }
  if (fd && !direct_reads_work(fd->get()) && ::fcntl(fd->get(), F_SETFL, 0) != 0) {
    return errno_failure(errno, fmt::format("cannot turn off direct I/O of '{}'", path));
  }
  return fd;
}

Result<void> lock_file(int fd, const std::string& path) {
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return {};
  if (errno == EWOULDBLOCK) {
    return failure(ErrorKind::in_use, fmt::format("'{}' is in use by another process", path));
  }
  return errno_failure(errno, fmt::format("cannot lock '{}'", path));
}

struct CloseDirectory {
  void operator()(DIR* stream) const { ::closedir(stream); }
};

std::string without_needless_slashes(std::string path) {
  const auto repeated =
      std::ranges::unique(path, [](char a, char b) { return a == '/' && b == '/'; });
  path.erase(repeated.begin(), repeated.end());
  if (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path;
}

}  // namespace

Result<std::unique_ptr<Directory>> open_directory(UringLoop& loop, const std::string& path,
                                                  bool create) {
  if (!path.starts_with('/')) {
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is not an absolute path", path));
  }
  const std::string plain = without_needless_slashes(path);
  if (create) TRY(make_directories(plain));
  Fd fd = TRY(open_at(AT_FDCWD, plain, plain, O_RDONLY | O_DIRECTORY));
  return std::unique_ptr<Directory>(new UringDirectory(loop, std::move(fd), plain));
}

Result<std::string> UringDirectory::path_of(const std::string& name) const {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.contains('\0')) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not a name of a file in '{}'", name, path_));
  }
  return path_ == "/" ? "/" + name : path_ + "/" + name;
}

Result<std::unique_ptr<File>> UringDirectory::open(const std::string& name, OpenOptions options) {
  const std::string path = TRY(path_of(name));
  const int flags = TRY(open_flags(fd_.get(), name, path, options));
  Fd fd = TRY(options.direct ? open_direct(fd_.get(), name, path, flags)
                             : open_at(fd_.get(), name, path, flags));
  if (options.lock) TRY(lock_file(fd.get(), path));
  return TRY(UringFile::adopt(loop_, std::move(fd), path));
}

Result<std::unique_ptr<Directory>> UringDirectory::open_directory(const std::string& name,
                                                                  bool create) {
  std::string path = TRY(path_of(name));
  if (create && ::mkdirat(fd_.get(), name.c_str(), 0700) != 0 && errno != EEXIST) {
    return errno_failure(errno, fmt::format("cannot make the directory '{}'", path));
  }
  Fd fd = TRY(open_at(fd_.get(), name, path, O_RDONLY | O_DIRECTORY));
  return std::unique_ptr<Directory>(new UringDirectory(loop_, std::move(fd), std::move(path)));
}

Result<bool> UringDirectory::exists(const std::string& name) {
  const std::string path = TRY(path_of(name));
  struct stat status{};
  if (::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) return true;
  if (errno == ENOENT) return false;
  return errno_failure(errno, fmt::format("cannot stat '{}'", path));
}

Result<void> UringDirectory::remove(const std::string& name) {
  const std::string path = TRY(path_of(name));
  if (::unlinkat(fd_.get(), name.c_str(), 0) == 0) return {};
  if (errno == EISDIR && ::unlinkat(fd_.get(), name.c_str(), AT_REMOVEDIR) == 0) return {};
  return errno_failure(errno, fmt::format("cannot remove '{}'", path));
}

Result<void> UringDirectory::rename(const std::string& from, const std::string& to) {
  const std::string from_path = TRY(path_of(from));
  const std::string to_path = TRY(path_of(to));
  if (::renameat(fd_.get(), from.c_str(), fd_.get(), to.c_str()) == 0) return {};
  return errno_failure(errno, fmt::format("cannot rename '{}' to '{}'", from_path, to_path));
}

Result<std::vector<std::string>> UringDirectory::list() {
  Fd fd =
      TRY(open_at(fd_.get(), ".", path_, O_RDONLY | O_DIRECTORY));  // with a position of its own
  const std::unique_ptr<DIR, CloseDirectory> stream(::fdopendir(fd.get()));
  if (stream == nullptr) return errno_failure(errno, fmt::format("cannot list '{}'", path_));
  fd.release();  // the stream's now
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return errno_failure(errno, fmt::format("cannot list '{}'", path_));
  std::ranges::sort(names);
  return names;
}

Result<void> UringDirectory::sync() {
  if (::fsync(fd_.get()) == 0) return {};
  return errno_failure(errno, fmt::format("cannot sync the directory '{}'", path_));
}

}  // namespace berth
