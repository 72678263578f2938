#include "async/boot_id.h"

#include <array>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "base/fd.h"

namespace berth {

Result<std::string> read_boot_id() {
  constexpr const char* path = "/proc/sys/kernel/random/boot_id";
  constexpr std::size_t uuid_length = 36;
  const Fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  std::array<char, 64> text{};
  const ssize_t got = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
  if (got < 0) return errno_failure(errno, std::string("cannot read ") + path);
  if (got < static_cast<ssize_t>(uuid_length)) {
    return failure(ErrorKind::io_error,
                   std::string(path) + " does not hold an id: is /proc mounted?");
  }
  return std::string(text.data(), uuid_length);
}

}  // namespace berth
