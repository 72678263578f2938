#include "machine/small_file.h"

#include <cerrno>
#include <filesystem>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"

namespace berth::machine {
namespace {

Result<void> write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno_failure(errno, "cannot write");
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::fsync(fd) != 0) return errno_failure(errno, "cannot sync");
  return {};
}

Result<void> replace(const std::string& path, const std::string& temporary, std::string_view text) {
  const Fd fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return errno_failure(errno, "cannot create");
  TRY(write_all(fd.get(), text));
  if (::rename(temporary.c_str(), path.c_str()) != 0) return errno_failure(errno, "cannot rename");
  const std::string parent = std::filesystem::path(path).parent_path();
  const Fd directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::fsync(directory.get()) != 0)
    return errno_failure(errno, "cannot sync the directory");
  return {};
}

}  // namespace

Result<std::string> read_small_file(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return errno_failure(errno, fmt::format("cannot open '{}'", path));
  std::string text(small_file_size_max + 1, '\0');
  std::size_t length = 0;
  while (length < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + length, text.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_failure(errno, fmt::format("cannot read '{}'", path));
    if (got == 0) break;
    length += static_cast<std::size_t>(got);
  }
  if (length > small_file_size_max) {
    return failure(ErrorKind::limit,
                   fmt::format("'{}' has more than {} bytes", path, small_file_size_max));
  }
  text.resize(length);
  return text;
}

Result<void> write_small_file(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".new";
  auto written = replace(path, temporary, text);
  if (written) return {};
  ::unlink(temporary.c_str());
  return failure(std::move(written).error().with_context(fmt::format("cannot write '{}'", path)));
}

}  // namespace berth::machine
