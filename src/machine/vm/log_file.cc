#include "machine/vm/log_file.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"

namespace berth::machine {

Result<void> trim_log(const std::string& path) {
  constexpr int flags = O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  const Fd file(::open(path.c_str(), flags));
  struct stat status{};
  if (!file || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_nlink != 1 || static_cast<std::uint64_t>(status.st_size) <= log_size_max)
    return {};
  std::string newest(log_size_kept, '\0');
  const ssize_t got = ::pread(file.get(), newest.data(), newest.size(),
                              status.st_size - static_cast<off_t>(log_size_kept));
  if (got < 0) return errno_failure(errno, fmt::format("cannot read '{}'", path));
  newest.resize(static_cast<std::size_t>(got));
  if (const auto line = newest.find('\n'); line != std::string::npos) newest.erase(0, line + 1);
  if (::ftruncate(file.get(), 0) != 0 ||
      ::write(file.get(), newest.data(), newest.size()) < static_cast<ssize_t>(newest.size()))
    return errno_failure(errno, fmt::format("cannot shorten '{}'", path));
  return {};
}

}  // namespace berth::machine
