// probes.h: how much memory there is, where it can outlive a process, and where it can go.

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/units.h"
#include "machine/host/host_text.h"
#include "machine/host/mapping.h"
#include "machine/host/memory_place.h"
#include "machine/host/probes.h"
#include "machine/host/scratch_file.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t available_min = 512 * MiB;
constexpr std::uint64_t memory_directory_min = 256 * MiB;
constexpr std::size_t page_size = 4096;

/// Whether a page that is written through one mapping of the file is read through another.
bool is_shared(const Fd& file) {
  if (::ftruncate(file.get(), page_size) != 0) return false;
  const Mapping first(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get());
  const Mapping second(page_size, PROT_READ, MAP_SHARED, file.get());
  if (!first || !second) return false;
  first.write_byte(17);
  return static_cast<const volatile unsigned char*>(second.data())[17] == 1;
}

std::string zswap_state(const HostView& host) {
  const auto text = host.read("/sys/module/zswap/parameters/enabled");
  if (!text) return "no zswap";
  return text->starts_with('Y') ? "zswap on" : "zswap off";
}

}  // namespace

Finding probe_memory(const HostView& host) {
  const std::string text = host.read("/proc/meminfo").value_or("");
  const auto total = meminfo_bytes(text, "MemTotal");
  const auto available = meminfo_bytes(text, "MemAvailable");
  if (!total || !available)
    return unknown("/proc/meminfo does not say", "not known", "Mount /proc");
  std::string detail =
      fmt::format("{}, {} available", format_size(*total), format_size(*available));
  if (*available >= available_min) return found(std::move(detail));
  return degraded(std::move(detail), "guests are killed or swapped when they use their memory",
                  "End something, or add memory");
}

Finding probe_memory_directory(const HostView& host) {
  constexpr const char* cost =
      "no volume can be opened: its live map must be in memory that outlives the keeper";
  const std::string place = memory_place(host.run_dir);
  if (place.empty()) {
    return missing(fmt::format("neither '{}' nor /dev/shm is on a tmpfs", host.run_dir), cost,
                   "Mount a tmpfs at /run or /dev/shm");
  }
  const auto file = make_scratch_file(place);
  if (!file || !is_shared(*file)) {
    return missing(fmt::format("{} takes no file: {}", place,
                               file ? "it cannot be mapped" : file.error().message()),
                   cost, "Make it writable for this user, and free space in it");
  }
  struct statvfs space{};
  ::statvfs(place.c_str(), &space);
  const std::uint64_t size = std::uint64_t{space.f_blocks} * space.f_frsize;
  const std::uint64_t available = std::uint64_t{space.f_bavail} * space.f_frsize;
  std::string detail = size == 0 ? fmt::format("{}, memory without a limit", place)
                                 : fmt::format("{}, tmpfs of {}, {} free", place, format_size(size),
                                               format_size(available));
  if (size == 0 || available >= memory_directory_min) return found(std::move(detail));
  return degraded(std::move(detail),
                  "room for few open volumes (64 MiB for each TiB), and for no guest's memory",
                  fmt::format("mount -o remount,size=50% {}", place));
}

Finding probe_memfd(const HostView& /*host*/) {
  const Fd file(::memfd_create("berth-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file && is_shared(file)) return found("made, mapped twice, shared");
  return missing(fmt::format("memfd_create: {}", std::strerror(errno)),
                 "memory cannot be handed to another process without a file's name",
                 "Use a kernel with CONFIG_MEMFD_CREATE=y");
}

Finding probe_swap(const HostView& host) {
  constexpr const char* cost =
      "containers cannot be paused to `trimmed`, and QEMU's own memory stays in RAM while they are "
      "parked";
  constexpr const char* remedy =
      "berth host swap --zram SIZE, or --file SIZE; or swapon of your own";
  std::uint64_t total = 0;
  std::uint64_t used = 0;
  std::uint64_t zram = 0;
  for (const SwapArea& area : parse_swaps(host.read("/proc/swaps").value_or(""))) {
    total += area.size_bytes;
    used += std::min(area.used_bytes, area.size_bytes);
    if (area.zram()) zram += area.size_bytes;
  }
  if (total == 0) return missing(fmt::format("none; {}", zswap_state(host)), cost, remedy);
  std::string detail = fmt::format(
      "{}, {} free; {}; {}", format_size(total), format_size(total - used),
      zram == 0 ? "no zram" : fmt::format("{} of it zram", format_size(zram)), zswap_state(host));
  if (total - used >= total / 10) return found(std::move(detail));
  return degraded(std::move(detail), "almost full: little more can be swapped out", remedy);
}

Finding probe_pageout(const HostView& /*host*/) {
  constexpr int advice_pageout = 21;  // MADV_PAGEOUT
  const Mapping memory(4 * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  const Fd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!memory || !self) {
    return unknown(fmt::format("nothing to try it with: {}", std::strerror(errno)), "not known",
                   "See memory and pidfd_open");
  }
  for (std::size_t at = 0; at < memory.size(); at += page_size) memory.write_byte(at);
  const iovec range{.iov_base = memory.data(), .iov_len = memory.size()};
  const long advised = ::syscall(SYS_process_madvise, self.get(), &range, 1, advice_pageout, 0);
  if (advised == static_cast<long>(memory.size())) return found("a process's pages were let go");
  return missing(fmt::format("process_madvise: {}", std::strerror(errno)),
                 "idle machines cannot be trimmed without their help",
                 "Use Linux 5.10 or later, as root or with CAP_SYS_NICE and CAP_SYS_PTRACE");
}

}  // namespace berth::machine
