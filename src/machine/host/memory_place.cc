#include "machine/host/memory_place.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#include "machine/host/host_view.h"

namespace berth::machine {
namespace {

bool is_memory(const std::string& path) {
  struct statfs file_system{};
  return ::statfs(path.c_str(), &file_system) == 0 &&
         (file_system.f_type == TMPFS_MAGIC || file_system.f_type == RAMFS_MAGIC);
}

}  // namespace

std::string memory_place(const std::string& run_dir) {
  std::string place = existing_ancestor(run_dir);
  if (is_memory(place)) return place;
  constexpr const char* shared_memory = "/dev/shm";
  return is_memory(shared_memory) ? shared_memory : "";
}

}  // namespace berth::machine
