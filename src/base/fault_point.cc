#include "base/fault_point.h"

#include <array>
#include <cstdlib>

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"

namespace berth {
namespace {

constexpr std::size_t name_length_max = 64;

bool is_armed(const char* path, std::string_view name) {
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  std::array<char, name_length_max> text{};
  const ssize_t length = file ? ::read(file.get(), text.data(), text.size()) : 0;
  return length > 0 && name == std::string_view(text.data(), static_cast<std::size_t>(length));
}

}  // namespace

void fault_point(std::string_view name) {
  static const char* const path = std::getenv("BERTH_FAULT_POINTS");
  if (path == nullptr || !is_armed(path, name)) return;
  if (::unlink(path) != 0) return;  // another process has come here first
  log_warning("fault point {}: this process ends here", name);
  ::kill(::getpid(), SIGKILL);
  while (true) ::pause();  // until that has come to this thread
}

}  // namespace berth
