#include "memory/preload/guest_memory.h"

#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory/preload/names.h"
#include "memory/write_protection.h"

namespace berth::memory::preload {
namespace {

constexpr int exit_status = 1;
constexpr mode_t write_permissions = 0222;

struct {
  bool known = false;
  bool clone = false;
  dev_t device = 0;
  ino_t inode = 0;
  int userfaultfd = -1;
} memory;  // written before main() and when the memory is mapped, both by QEMU's main thread

bool is_it(const struct stat& status) {
  return status.st_dev == memory.device && status.st_ino == memory.inode;
}

/// Nobody but root can write to it or give somebody the right to.
bool is_sealed(const struct stat& status) {
  return (status.st_mode & write_permissions) == 0 &&
         (status.st_uid != ::geteuid() || status.st_uid == 0);
}

int open_userfaultfd() {
  // Faults of user mode only: needs no privilege. WP_ASYNC resolves the others just as well.
  const auto fd =
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (fd < 0) give_up("userfaultfd", errno);
  uffdio_api api{.api = UFFD_API, .features = tracking_features, .ioctls = 0};
  if (::ioctl(fd, UFFDIO_API, &api) != 0)
    give_up("userfaultfd has no asynchronous write protection (Linux 6.7)", errno);
  return fd;
}

void track(void* address, std::size_t length) {
  if (memory.userfaultfd < 0) memory.userfaultfd = open_userfaultfd();
  const auto page_size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  uffdio_register registration{.range = {.start = reinterpret_cast<std::uintptr_t>(address),
                                         .len = (length + page_size - 1) / page_size * page_size},
                               .mode = UFFDIO_REGISTER_MODE_WP,
                               .ioctls = 0};
  if (::ioctl(memory.userfaultfd, UFFDIO_REGISTER, &registration) != 0)
    give_up("its mapping cannot be registered", errno);
}

}  // namespace

[[noreturn]] void give_up(const char* what, int error) {
  ::dprintf(STDERR_FILENO, "%s: the machine's memory cannot be %s: %s%s%s\n", preload_library_name,
            memory.clone ? "a clone's" : "tracked", what, error != 0 ? ": " : "",
            error != 0 ? ::strerror(error) : "");
  ::_exit(exit_status);
}

void find_guest_memory() {
  const char* object = ::getenv(memory_object_variable);
  const char* clone_of = ::getenv(memory_template_variable);
  memory.clone = object == nullptr && clone_of != nullptr;
  if ((object == nullptr) == (clone_of == nullptr))
    give_up("one of BERTH_MEMORY_OBJECT and BERTH_MEMORY_TEMPLATE has to say which it is", 0);
  const char* path = memory.clone ? clone_of : object;
  struct stat status{};
  if (::stat(path, &status) != 0) give_up(path, errno);
  if (!S_ISREG(status.st_mode)) give_up("what the environment names is no file", 0);
  if (memory.clone && !is_sealed(status)) give_up("the template is not sealed", 0);
  memory.device = status.st_dev;
  memory.inode = status.st_ino;
  memory.known = true;
  ::unsetenv(memory_object_variable);
  ::unsetenv(memory_template_variable);
}

bool is_guest_memory(int directory, const char* path) {
  struct stat status{};
  return memory.known && ::fstatat(directory, path, &status, 0) == 0 && is_it(status);
}

bool is_guest_memory(int fd) {
  struct stat status{};
  return memory.known && fd >= 0 && ::fstat(fd, &status) == 0 && is_it(status);
}

bool is_clone() { return memory.clone; }

void* map_guest_memory(void* address, std::size_t length, int protection, int flags, int fd,
                       long offset) {
  const int type = flags & MAP_TYPE;
  if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
    give_up("it is mapped privately; its backend needs share=on", 0);
  if (memory.clone) flags = (flags & ~MAP_TYPE) | MAP_PRIVATE;
  void* mapping =
      std::bit_cast<void*>(::syscall(SYS_mmap, address, length, protection, flags, fd, offset));
  if (mapping != MAP_FAILED && !memory.clone) track(mapping, length);
  return mapping;
}

}  // namespace berth::memory::preload
