// probes.h: limits of this process and of the kernel.

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include <sys/resource.h>

#include <fmt/format.h>

#include "base/units.h"
#include "machine/host/probes.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t open_files_wanted = 16384;  // a keeper raises its own to this
constexpr std::uint64_t locked_memory_wanted = 8 * MiB;
constexpr std::uint64_t memory_maps_wanted = 262144;
constexpr std::uint64_t asynchronous_io_wanted = 32768;
constexpr std::uint64_t processes_wanted = 32768;

rlimit limit_of(int resource) {
  rlimit limit{};
  ::getrlimit(static_cast<__rlimit_resource_t>(resource), &limit);
  return limit;
}

std::string shown(rlim_t value) {
  return value == RLIM_INFINITY ? "unlimited" : fmt::format("{}", value);
}

std::string shown_size(rlim_t value) {
  return value == RLIM_INFINITY ? "unlimited" : format_size(value);
}

Finding not_told(const char* path) {
  return unknown(fmt::format("{} cannot be read", path), "not known", "Mount /proc");
}

}  // namespace

Finding probe_open_files(const HostView& host) {
  const rlimit limit = limit_of(RLIMIT_NOFILE);
  const auto most = host.read_number("/proc/sys/fs/nr_open");
  std::string detail = fmt::format("{} (hard {}; fs.nr_open {})", shown(limit.rlim_cur),
                                   shown(limit.rlim_max), most ? fmt::format("{}", *most) : "?");
  if (limit.rlim_max >= open_files_wanted) return found(std::move(detail));
  return degraded(std::move(detail),
                  fmt::format("a keeper wants {}: it serves fewer NBD clients", open_files_wanted),
                  "ulimit -Hn 65536, or LimitNOFILE=65536 of the service");
}

Finding probe_locked_memory(const HostView& /*host*/) {
  const rlimit limit = limit_of(RLIMIT_MEMLOCK);
  std::string detail =
      fmt::format("{} (hard {})", shown_size(limit.rlim_cur), shown_size(limit.rlim_max));
  if (limit.rlim_max >= locked_memory_wanted) return found(std::move(detail));
  return degraded(std::move(detail), "QEMU cannot lock guests' memory, nor pass devices through",
                  "ulimit -Hl unlimited, or LimitMEMLOCK=infinity of the service");
}

Finding probe_memory_maps(const HostView& host) {
  constexpr const char* path = "/proc/sys/vm/max_map_count";
  const auto count = host.read_number(path);
  if (!count) return not_told(path);
  std::string detail = fmt::format("vm.max_map_count {}", *count);
  if (*count >= memory_maps_wanted) return found(std::move(detail));
  return degraded(
      std::move(detail),
      fmt::format("a machine with more than {} of scattered private memory cannot be parked",
                  format_size(*count * (64 * KiB))),
      fmt::format("sysctl vm.max_map_count={}, in /etc/sysctl.d too", memory_maps_wanted));
}

Finding probe_asynchronous_io(const HostView& host) {
  constexpr const char* path = "/proc/sys/fs/aio-max-nr";
  const auto most = host.read_number(path);
  const auto used = host.read_number("/proc/sys/fs/aio-nr");
  if (!most || !used) return not_told(path);
  std::string detail = fmt::format("{} of fs.aio-max-nr {} in use", *used, *most);
  if (*most >= *used && *most - *used >= asynchronous_io_wanted) return found(std::move(detail));
  return degraded(std::move(detail), "QEMU with aio=native may find no room; Berth uses io_uring",
                  "sysctl fs.aio-max-nr=1048576, in /etc/sysctl.d too");
}

Finding probe_processes(const HostView& host) {
  constexpr const char* path = "/proc/sys/kernel/pid_max";
  const auto ids = host.read_number(path);
  const auto threads = host.read_number("/proc/sys/kernel/threads-max");
  if (!ids || !threads) return not_told(path);
  const rlimit limit = limit_of(RLIMIT_NPROC);
  std::string detail = fmt::format("kernel.pid_max {}, threads-max {}, of this user {} (hard {})",
                                   *ids, *threads, shown(limit.rlim_cur), shown(limit.rlim_max));
  if (std::min<std::uint64_t>({*ids, *threads, limit.rlim_max}) >= processes_wanted)
    return found(std::move(detail));
  return degraded(std::move(detail),
                  "hundreds of machines, with a thread for each vCPU, do not fit",
                  "sysctl kernel.pid_max=4194304 kernel.threads-max=4194304; ulimit -Hu unlimited");
}

}  // namespace berth::machine
