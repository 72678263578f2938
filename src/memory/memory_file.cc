#include "memory/memory_file.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/units.h"

namespace berth::memory {

Result<MemoryFile> MemoryFile::open(const std::string& path, Access access) {
  const int mode = access == Access::read ? O_RDONLY : O_RDWR;
  MemoryFile file{.path = path,
                  .fd = Fd(::open(path.c_str(), mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK))};
  struct stat status{};
  if (!file.fd || ::fstat(file.fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot open the memory '{}'", path));
  if (!S_ISREG(status.st_mode) || status.st_size == 0 ||
      static_cast<std::uint64_t>(status.st_size) % page_size != 0) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no memory: it is no file of whole pages", path));
  }
  file.size = static_cast<std::uint64_t>(status.st_size);
  return file;
}

Result<void> MemoryFile::read(std::uint64_t offset, MutableBytes into) const {
  while (!into.empty()) {
    const ssize_t got = ::pread(fd.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_failure(errno, fmt::format("cannot read '{}'", path));
    if (got == 0) {
      return failure(ErrorKind::corrupt,
                     fmt::format("'{}' ends at {}, and had {} bytes", path, offset, size));
    }
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

Result<void> MemoryFile::write(std::uint64_t offset, Bytes from) const {
  while (!from.empty()) {
    const ssize_t done = ::pwrite(fd.get(), from.data(), from.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return errno_failure(errno, fmt::format("cannot write '{}'", path));
    from = from.subspan(static_cast<std::size_t>(done));
    offset += static_cast<std::uint64_t>(done);
  }
  return {};
}

Result<void> MemoryFile::check_size() const {
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  if (static_cast<std::uint64_t>(status.st_size) == size) return {};
  return failure(ErrorKind::corrupt,
                 fmt::format("'{}' had {} bytes, and has {} now", path, size, status.st_size));
}

Result<MemoryFile::Extent> MemoryFile::next_data(std::uint64_t offset) const {
  const Extent nothing{.start = size, .end = size};
  if (offset >= size) return nothing;
  const off_t data = ::lseek(fd.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return nothing;
  if (data < 0) return errno_failure(errno, fmt::format("cannot find the data of '{}'", path));
  const off_t hole = ::lseek(fd.get(), data, SEEK_HOLE);
  if (hole < 0 && errno == ENXIO) return nothing;  // shortened, or punched, in between
  if (hole < 0) return errno_failure(errno, fmt::format("cannot find the holes of '{}'", path));
  return Extent{.start = std::max(offset, round_down(static_cast<std::uint64_t>(data), page_size)),
                .end = std::min(size, round_up(static_cast<std::uint64_t>(hole), page_size))};
}

}  // namespace berth::memory
