// libberth-preload.so: the only code of ours inside QEMU (DESIGN §6).
//
// Loaded with LD_PRELOAD after privileges have been dropped. When QEMU maps the memory object that
// BERTH_MEMORY_OBJECT names, the mapping is registered with a userfaultfd for asynchronous write
// protection, which only the process itself can do and which is what memory/dirty_scan.h reads from
// outside. Nothing is protected by that, and nothing costs anything, before the first scan.
//
// It fails closed: where the memory could not be tracked, QEMU does not run. It says why in one
// line on standard error and ends the process, before the guest has run an instruction. It takes
// its variable, and itself, out of the environment. It holds one file descriptor, closed on exec.
//
// Without the C++ library. The calls of the kernel that it stands in front of are made directly.
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory/preload/names.h"
#include "memory/write_protection.h"

// The kernel's calls take a 64-bit offset in one register.
static_assert(sizeof(long) == 8 && sizeof(off_t) == 8);

namespace {

using namespace berth::memory;

constexpr int exit_status = 1;
constexpr std::size_t preload_length_max = 4096;  // of LD_PRELOAD, bytes

struct {
  bool known = false;
  dev_t device = 0;
  ino_t inode = 0;
  int userfaultfd = -1;
} object;  // written before main() and when the memory is mapped, both by QEMU's main thread

[[noreturn]] void give_up(const char* what, int error) {
  ::dprintf(STDERR_FILENO, "%s: the machine's memory cannot be tracked: %s%s%s\n",
            preload_library_name, what, error != 0 ? ": " : "",
            error != 0 ? ::strerror(error) : "");
  ::_exit(exit_status);
}

bool is_object(int fd) {
  struct stat status{};
  return object.known && fd >= 0 && ::fstat(fd, &status) == 0 && status.st_dev == object.device &&
         status.st_ino == object.inode;
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

void track(void* memory, std::size_t length, int flags) {
  const int type = flags & MAP_TYPE;
  if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
    give_up("it is mapped privately; its backend needs share=on", 0);
  if (object.userfaultfd < 0) object.userfaultfd = open_userfaultfd();
  const auto page_size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  uffdio_register registration{.range = {.start = reinterpret_cast<std::uintptr_t>(memory),
                                         .len = (length + page_size - 1) / page_size * page_size},
                               .mode = UFFDIO_REGISTER_MODE_WP,
                               .ioctls = 0};
  if (::ioctl(object.userfaultfd, UFFDIO_REGISTER, &registration) != 0)
    give_up("its mapping cannot be registered", errno);
}

/// The entries of LD_PRELOAD stand between blanks or colons (ld.so(8)).
void leave_ld_preload() {
  const char* before = ::getenv("LD_PRELOAD");
  if (before == nullptr) return;
  if (::strlen(before) >= preload_length_max) give_up("LD_PRELOAD is too long", 0);
  char after[preload_length_max] = "";
  for (const char* entry = before; *entry != '\0';) {
    const std::size_t length = ::strcspn(entry, " :");
    const std::size_t name_length = ::strlen(preload_library_name);
    const bool is_ours = length >= name_length && ::strncmp(entry + length - name_length,
                                                            preload_library_name, name_length) == 0;
    if (length > 0 && !is_ours) {
      if (after[0] != '\0') ::strcat(after, ":");
      ::strncat(after, entry, length);
    }
    entry += length;
    if (*entry != '\0') ++entry;
  }
  if (after[0] == '\0') {
    ::unsetenv("LD_PRELOAD");
  } else {
    ::setenv("LD_PRELOAD", after, 1);
  }
}

[[gnu::constructor]] void begin() {
  const char* path = ::getenv(memory_object_variable);
  if (path == nullptr) give_up("nobody says which (BERTH_MEMORY_OBJECT)", 0);
  struct stat status{};
  if (::stat(path, &status) != 0) give_up(path, errno);
  if (!S_ISREG(status.st_mode)) give_up("what BERTH_MEMORY_OBJECT names is no file", 0);
  object.known = true;
  object.device = status.st_dev;
  object.inode = status.st_ino;
  ::unsetenv(memory_object_variable);
  leave_ld_preload();
}

}  // namespace

// Under names of their own: the headers have their own opinion about which of the two mmap() is.
extern "C" {

[[gnu::visibility("default")]] void* berth_preload_mmap(void* address, std::size_t length,
                                                        int protection, int flags, int fd,
                                                        std::int64_t offset) __asm__("mmap");
void* berth_preload_mmap(void* address, std::size_t length, int protection, int flags, int fd,
                         std::int64_t offset) {
  const long result = ::syscall(SYS_mmap, address, length, protection, flags, fd, offset);
  void* memory = std::bit_cast<void*>(result);
  if (memory != MAP_FAILED && (flags & MAP_ANONYMOUS) == 0 && is_object(fd))
    track(memory, length, flags);
  return memory;
}
[[gnu::visibility("default"), gnu::alias("mmap")]] void* berth_preload_mmap64(
    void* address, std::size_t length, int protection, int flags, int fd,
    std::int64_t offset) __asm__("mmap64");

// A page that is protected stays so when a hole is punched under it: the change would not be seen.
// Refused, QEMU goes on without giving the memory back (a balloon).
[[gnu::visibility("default")]] int berth_preload_fallocate(
    int fd, int mode, std::int64_t offset, std::int64_t length) __asm__("fallocate");
int berth_preload_fallocate(int fd, int mode, std::int64_t offset, std::int64_t length) {
  if ((mode & ~FALLOC_FL_KEEP_SIZE) != 0 && is_object(fd)) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, length));
}
[[gnu::visibility("default"), gnu::alias("fallocate")]] int berth_preload_fallocate64(
    int fd, int mode, std::int64_t offset, std::int64_t length) __asm__("fallocate64");

}  // extern "C"
