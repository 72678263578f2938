#include "machine/host/host_view.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "machine/host/host_text.h"

namespace berth::machine {
namespace {

constexpr std::size_t file_size_max = 4 << 20;  // bytes

}  // namespace

std::optional<std::string> read_text_file(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!file) return std::nullopt;
  std::string text;
  char buffer[16 * 1024];
  while (text.size() < file_size_max) {
    const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return std::nullopt;
    if (count == 0) break;
    text.append(buffer, static_cast<std::size_t>(count));
  }
  return text;
}

std::optional<std::uint64_t> HostView::read_number(std::string_view absolute) const {
  const auto text = read(absolute);
  return text ? leading_number(*text) : std::nullopt;
}

std::string existing_ancestor(const std::string& path) {
  std::string at = path.empty() ? "." : path;
  struct stat status{};
  // lstat: a link that leads nowhere is there, and in the way.
  while (at.size() > 1 && ::lstat(at.c_str(), &status) != 0) {
    const std::size_t slash = at.find_last_of('/');
    if (slash == std::string::npos) return ".";
    at.resize(slash == 0 ? 1 : slash);
  }
  return at;
}

}  // namespace berth::machine
