#include "async/directories.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"

namespace berth {

Result<void> make_directories(const std::string& path) {
  if (!path.starts_with('/')) {
    return failure(ErrorKind::invalid_argument, fmt::format("'{}' is not an absolute path", path));
  }
  if (::access(path.c_str(), F_OK) == 0) return {};
  const std::string parent = path.rfind('/') == 0 ? "/" : path.substr(0, path.rfind('/'));
  TRY(make_directories(parent));
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return errno_failure(errno, fmt::format("cannot make the directory '{}'", path));
  }
  const Fd fd(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) {
    return errno_failure(errno, fmt::format("cannot sync the directory '{}'", parent));
  }
  return {};
}

}  // namespace berth
