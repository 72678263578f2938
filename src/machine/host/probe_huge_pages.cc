// probes.h: huge pages, reserved and transparent.

#include <cerrno>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/result.h"
#include "base/units.h"
#include "machine/host/cgroup_layout.h"
#include "machine/host/host_text.h"
#include "machine/host/mapping.h"
#include "machine/host/memory_place.h"
#include "machine/host/probes.h"
#include "machine/host/scratch_file.h"

namespace berth::machine {
namespace {

constexpr std::size_t huge_page = 2 * MiB;

Finding pool(const HostView& host, std::uint64_t page, const char* remedy) {
  const std::string directory = fmt::format("/sys/kernel/mm/hugepages/hugepages-{}kB", page / KiB);
  constexpr const char* cost = "large guests spend more time on address translation";
  const auto total = host.read_number(directory + "/nr_hugepages");
  const auto available = host.read_number(directory + "/free_hugepages");
  if (!total || !available)
    return missing("the CPU or the kernel has none of this size", cost, "Use another host");
  const std::uint64_t surplus =
      host.read_number(directory + "/nr_overcommit_hugepages").value_or(0);
  if (*total + surplus == 0) return missing("the pool is empty", cost, remedy);
  return found(fmt::format("{} pages, {} free{}", *total, *available,
                           surplus == 0 ? "" : fmt::format(", {} more on demand", surplus)));
}

Result<Fd> make_memory_file() {
  Fd file(::memfd_create("berth-doctor", MFD_CLOEXEC));
  if (file) return file;
  return errno_failure(errno, "memfd_create");
}

/// Whether the file's first 2 MiB are one huge page once they are written.
bool has_huge_page(const Result<Fd>& file) {
  if (!file || ::ftruncate(file->get(), huge_page) != 0) return false;
  // Twice as much address space has a place that is aligned.
  const Mapping space(2 * huge_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  if (!space) return false;
  const std::uint64_t address = round_up(space.address(), huge_page);
  void* at = static_cast<char*>(space.data()) + (address - space.address());
  if (::mmap(at, huge_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file->get(), 0) ==
      MAP_FAILED)
    return false;
  ::madvise(at, huge_page, MADV_HUGEPAGE);
  *static_cast<volatile unsigned char*>(at) = 1;
  const auto smaps = read_text_file("/proc/self/smaps");
  return smaps && smaps_bytes(*smaps, address, "ShmemPmdMapped").value_or(0) != 0;
}

}  // namespace

Finding probe_huge_pages_2m(const HostView& host) {
  return pool(host, 2 * MiB, "sysctl vm.nr_hugepages=N, in /etc/sysctl.d too");
}

Finding probe_huge_pages_1g(const HostView& host) {
  return pool(host, GiB, "Boot with hugepagesz=1G hugepages=N");
}

Finding probe_transparent_huge_pages(const HostView& host) {
  const std::string setting = chosen_word(
      host.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").value_or("not there"));
  const std::string place = memory_place(host.run_dir);
  const auto mounts = parse_mountinfo(host.read("/proc/self/mountinfo").value_or(""));
  const Mount* mount = mount_of(mounts, place);
  const std::string_view huge = mount == nullptr ? "" : option_value(mount->super_options, "huge");
  const bool in_place = !place.empty() && has_huge_page(make_scratch_file(place));
  const auto memfd = make_memory_file();
  const bool in_memfd = has_huge_page(memfd);
  const std::string detail = fmt::format(
      "{}: {} (huge={}); memfd: {} (shmem_enabled: {})", place.empty() ? "-" : place,
      in_place ? "yes" : "no", huge.empty() ? "never" : huge, in_memfd ? "yes" : "no", setting);
  if (in_place) return found(detail);
  const std::string remedy = fmt::format(
      "mount -o remount,huge=advise {}; echo advise > "
      "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
      place.empty() ? "/dev/shm" : place);
  constexpr const char* cost = "guests' memory is in pages of 4 KiB: more time on translation";
  return in_memfd ? degraded(detail, cost, remedy) : missing(detail, cost, remedy);
}

}  // namespace berth::machine
