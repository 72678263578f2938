#include "disk/locked_file.h"

#include <algorithm>
#include <utility>

namespace berth::disk {

Task<Result<std::unique_ptr<File>>> open_locked(Loop& loop, Directory& directory, std::string name,
                                                berth::OpenOptions options) {
  constexpr Duration first_pause = std::chrono::milliseconds(1);
  constexpr Duration longest_pause = std::chrono::milliseconds(50);
  options.lock = true;
  const Instant deadline = loop.now() + lock_wait_max;
  Duration pause = first_pause;
  for (;;) {
    auto file = directory.open(name, options);
    if (file || file.error().kind() != ErrorKind::in_use || loop.now() >= deadline) co_return file;
    co_await loop.sleep(pause);
    pause = std::min(2 * pause, longest_pause);
  }
}

}  // namespace berth::disk
