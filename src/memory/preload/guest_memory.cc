#include "memory/preload/guest_memory.h"

#include <atomic>
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

/// Where it is; 0: nowhere yet. The other thread reads it.
std::atomic<std::uintptr_t> mapped_address = 0;
std::atomic<std::uint64_t> mapped_size = 0;  // written before
/// In a second place too, or in pieces: then nobody knows what is to be mapped where.
std::atomic<bool> is_mapped_oddly = false;

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

std::uint64_t whole_pages(std::uint64_t length) {
  const auto page_size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return (length + page_size - 1) / page_size * page_size;
}

/// 0, or an errno.
int track(void* address, std::size_t length) {
  uffdio_register registration{
      .range = {.start = reinterpret_cast<std::uintptr_t>(address), .len = whole_pages(length)},
      .mode = UFFDIO_REGISTER_MODE_WP,
      .ioctls = 0};
  return ::ioctl(memory.userfaultfd, UFFDIO_REGISTER, &registration) == 0 ? 0 : errno;
}

void remember(void* mapping, std::size_t length, long offset) {
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  const std::uintptr_t before = mapped_address;
  if (before == 0 && offset == 0) {
    mapped_size = whole_pages(length);
    mapped_address = address;
  } else if (before == 0 || address - static_cast<std::uintptr_t>(offset) != before) {
    is_mapped_oddly = true;
  }
}

bool are_in_order(const channel::Range* ranges, unsigned count, std::uint64_t size) {
  std::uint64_t end = 0;
  for (unsigned i = 0; i < count; ++i) {
    const channel::Range& range = ranges[i];
    if (range.offset < end || range.offset > size || range.length == 0 ||
        range.length > size - range.offset)
      return false;
    end = range.offset + range.length;
    if (range.offset % channel::granule_min != 0 ||
        (end % channel::granule_min != 0 && end != size))
      return false;
  }
  return true;
}

constexpr int protection_of_memory = PROT_READ | PROT_WRITE;

void* map_piece(void* address, std::uint64_t length, int flags, int fd, std::uint64_t offset) {
  return std::bit_cast<void*>(
      ::syscall(SYS_mmap, address, length, protection_of_memory, flags, fd, offset));
}

/// 0, or an errno. What QEMU has said about the memory is said again: it is in no core dump, and no
/// child of its has it.
int map_over(const channel::Range& range, int flags, int fd) {
  void* address = std::bit_cast<void*>(mapped_address + range.offset);
  if (map_piece(address, range.length, flags | MAP_FIXED, fd, range.offset) == MAP_FAILED) {
    const int error = errno;
    // ENOMEM: not all of it is mapped (msync(2)). Nothing else comes of it.
    if (::msync(address, range.length, MS_ASYNC) != 0 && errno == ENOMEM)
      give_up("a piece of it is gone: mmap", error);
    return error;
  }
  (void)::madvise(address, range.length, MADV_DONTDUMP);
  (void)::madvise(address, range.length, MADV_DONTFORK);
  return (flags & MAP_TYPE) == MAP_SHARED ? track(address, range.length) : 0;
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
  if (mapping == MAP_FAILED) return mapping;
  if (!memory.clone) {
    if (memory.userfaultfd < 0) memory.userfaultfd = open_userfaultfd();
    if (const int error = track(mapping, length); error != 0)
      give_up("its mapping cannot be registered", error);
  }
  remember(mapping, length, offset);
  return mapping;
}

void describe_guest_memory(channel::Answer& answer) {
  answer.address = mapped_address;
  answer.size = mapped_size;
  answer.is_clone = memory.clone ? 1 : 0;
  answer.device = memory.device;
  answer.inode = memory.inode;
  answer.status = answer.address != 0 && !is_mapped_oddly ? channel::done : channel::not_mapped;
}

void map_into_guest_memory(int fd, const channel::Range* ranges, unsigned count,
                           channel::Answer& answer) {
  answer.status = channel::out_of_bounds;
  if (!are_in_order(ranges, count, answer.size)) return;
  struct stat status{};
  answer.status = channel::wrong_file;
  if (fd < 0 || ::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
      static_cast<std::uint64_t>(status.st_size) < answer.size)
    return;
  const int flags = is_it(status) && !memory.clone ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE;
  if (count > 0) {
    // Elsewhere first: what a file or its descriptor is not good for is found before anything of
    // the memory is unmapped.
    void* trial = map_piece(nullptr, ranges[0].length, flags, fd, ranges[0].offset);
    if (trial == MAP_FAILED) {
      answer.error = static_cast<std::uint32_t>(errno);
      return;
    }
    ::munmap(trial, ranges[0].length);
  }
  answer.status = channel::refused;
  for (; answer.ranges < count; ++answer.ranges) {
    const int error = map_over(ranges[answer.ranges], flags, fd);
    answer.error = static_cast<std::uint32_t>(error);
    if (error != 0) return;
  }
  answer.status = channel::done;
}

}  // namespace berth::memory::preload
