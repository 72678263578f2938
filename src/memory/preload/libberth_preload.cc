// libberth-preload.so: the only code of ours inside QEMU (DESIGN §6).
//
// Loaded with LD_PRELOAD after privileges have been dropped. It stands in front of the few calls
// through which QEMU comes to the machine's memory, and does one of two things:
//
//   BERTH_MEMORY_OBJECT    When QEMU maps the memory object of this name, the mapping is registered
//     with a userfaultfd for asynchronous write protection, which only the process itself can do
//     and which is what memory/dirty_scan.h reads from outside. Nothing is protected by that, and
//     nothing costs anything, before the first scan.
//   BERTH_MEMORY_TEMPLATE  QEMU is a clone: it opens the template of this name for reading only,
//     whatever it asks for, and maps it privately. What it writes is its own. QEMU itself is told
//     that the memory is shared (share=on): so it keeps it out of the state of the devices.
//
// With BERTH_MEMORY_CHANNEL a thread of its own serves a socket of that name, on which root can
// have pieces of the memory mapped from another file: how machines are parked (memory/parking.h).
//
// It fails closed: where the memory could not be tracked, the template is not sealed or the socket
// cannot be served, QEMU does not run. It says why in one line on standard error and ends the
// process, before the guest has run an instruction. It takes its variables, and itself, out of the
// environment. Its file descriptors are closed on exec.
//
// Without the C++ library. The calls of the kernel that it stands in front of are made directly.
#include <bit>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory/preload/guest_memory.h"
#include "memory/preload/memory_channel.h"
#include "memory/preload/names.h"

// The kernel's calls take a 64-bit offset in one register.
static_assert(sizeof(long) == 8 && sizeof(off_t) == 8);

namespace {

using namespace berth::memory;
using namespace berth::memory::preload;

constexpr std::size_t preload_length_max = 4096;  // of LD_PRELOAD, bytes

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
  find_guest_memory();
  leave_ld_preload();
  if (const char* path = ::getenv(memory_channel_variable); path != nullptr) {
    serve_memory_channel(path);
    ::unsetenv(memory_channel_variable);
  }
}

/// Of the template, a descriptor that nobody can write through. Who looks at the name and who opens
/// it may see two files: what is opened is for reading only, and mapping it tells them apart again.
int open_at(int directory, const char* path, int flags, mode_t mode) {
  const bool for_writing = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0;
  if (for_writing && is_clone() && is_guest_memory(directory, path)) {
    if ((flags & O_TRUNC) != 0) {
      errno = EACCES;
      return -1;
    }
    // Whoever wants a file that is not there yet hears that it is.
    if ((flags & (O_CREAT | O_EXCL)) != (O_CREAT | O_EXCL))
      flags = (flags & ~(O_ACCMODE | O_CREAT)) | O_RDONLY;
  }
  return static_cast<int>(::syscall(SYS_openat, directory, path, flags, mode));
}

bool has_mode(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

int refuse(int error) {
  errno = error;
  return -1;
}

}  // namespace

// Under names of their own: the headers have their own opinion about which of the two mmap() is.
#define BERTH_PRELOAD extern "C" [[gnu::visibility("default")]]  // NOLINT(*-macro-usage)

BERTH_PRELOAD void* berth_preload_mmap(void* address, std::size_t length, int protection, int flags,
                                       int fd, std::int64_t offset) __asm__("mmap");
void* berth_preload_mmap(void* address, std::size_t length, int protection, int flags, int fd,
                         std::int64_t offset) {
  if ((flags & MAP_ANONYMOUS) == 0 && is_guest_memory(fd))
    return map_guest_memory(address, length, protection, flags, fd, offset);
  return std::bit_cast<void*>(::syscall(SYS_mmap, address, length, protection, flags, fd, offset));
}
extern "C" [[gnu::visibility("default"), gnu::alias("mmap")]] void* berth_preload_mmap64(
    void* address, std::size_t length, int protection, int flags, int fd,
    std::int64_t offset) __asm__("mmap64");

// open(2), as glibc exports it: with a mode where one is given, and for checked builds without.
BERTH_PRELOAD int berth_preload_open(const char* path, int flags, ...) __asm__("open");
int berth_preload_open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = has_mode(flags) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return open_at(AT_FDCWD, path, flags, mode);
}
extern "C" [[gnu::visibility("default"), gnu::alias("open")]] int berth_preload_open64(
    const char* path, int flags, ...) __asm__("open64");
BERTH_PRELOAD int berth_preload_openat(int directory, const char* path, int flags,
                                       ...) __asm__("openat");
int berth_preload_openat(int directory, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = has_mode(flags) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return open_at(directory, path, flags, mode);
}
extern "C" [[gnu::visibility("default"), gnu::alias("openat")]] int berth_preload_openat64(
    int directory, const char* path, int flags, ...) __asm__("openat64");
BERTH_PRELOAD int berth_preload_open_2(const char* path, int flags) __asm__("__open_2");
int berth_preload_open_2(const char* path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
extern "C" [[gnu::visibility("default"), gnu::alias("__open_2")]] int berth_preload_open64_2(
    const char* path, int flags) __asm__("__open64_2");
BERTH_PRELOAD int berth_preload_openat_2(int directory, const char* path,
                                         int flags) __asm__("__openat_2");
int berth_preload_openat_2(int directory, const char* path, int flags) {
  return open_at(directory, path, flags, 0);
}
extern "C" [[gnu::visibility("default"), gnu::alias("__openat_2")]] int berth_preload_openat64_2(
    int directory, const char* path, int flags) __asm__("__openat64_2");

// A page that is protected stays so when a hole is punched under it: the change would not be seen.
// Refused, QEMU goes on without giving the memory back (a balloon). A template is no clone's to
// change, and has all of its space.
BERTH_PRELOAD int berth_preload_fallocate(int fd, int mode, std::int64_t offset,
                                          std::int64_t length) __asm__("fallocate");
int berth_preload_fallocate(int fd, int mode, std::int64_t offset, std::int64_t length) {
  if ((is_clone() || (mode & ~FALLOC_FL_KEEP_SIZE) != 0) && is_guest_memory(fd))
    return refuse(EOPNOTSUPP);
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, length));
}
extern "C" [[gnu::visibility("default"), gnu::alias("fallocate")]] int berth_preload_fallocate64(
    int fd, int mode, std::int64_t offset, std::int64_t length) __asm__("fallocate64");

BERTH_PRELOAD int berth_preload_ftruncate(int fd, std::int64_t length) __asm__("ftruncate");
int berth_preload_ftruncate(int fd, std::int64_t length) {
  if (is_clone() && is_guest_memory(fd)) return refuse(EPERM);
  return static_cast<int>(::syscall(SYS_ftruncate, fd, length));
}
extern "C" [[gnu::visibility("default"), gnu::alias("ftruncate")]] int berth_preload_ftruncate64(
    int fd, std::int64_t length) __asm__("ftruncate64");
