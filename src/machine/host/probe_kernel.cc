// probes.h: the kernel's version, and what it offers for processes and for fencing them in.

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/host/host_text.h"
#include "machine/host/probes.h"

namespace berth::machine {
namespace {

constexpr Version oldest_tested = {6, 1, 0};  // Debian 12's

Fd own_pidfd() { return Fd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0))); }

constexpr const char* later_guard = "no part of Berth yet: fences around untrusted guests will";

// lsm_list_modules(2), Linux 6.8: not in the headers of older ones.
constexpr long system_call_lsm_list_modules = 461;
constexpr std::uint64_t lsm_id_bpf = 109;

/// Whether the kernel names the LSM bpf as active; nothing where it names none.
std::optional<bool> bpf_is_listed(const HostView& host) {
  if (const auto text = host.read("/sys/kernel/security/lsm")) {
    for (const std::string_view name : split(*text, ",\n")) {
      if (name == "bpf") return true;
    }
    return false;
  }
  std::array<std::uint64_t, 64> ids{};
  auto size = static_cast<std::uint32_t>(sizeof ids);
  const long count = ::syscall(system_call_lsm_list_modules, ids.data(), &size, 0);
  if (count < 0) return std::nullopt;
  for (long i = 0; i < count; ++i) {
    if (ids[static_cast<std::size_t>(i)] == lsm_id_bpf) return true;
  }
  return false;
}

}  // namespace

Finding probe_kernel(const HostView& /*host*/) {
  utsname names{};
  ::uname(&names);
  std::string detail = fmt::format("Linux {}, {}", names.release, names.machine);
  const auto version = find_version(names.release);
  if (!version) return unknown(std::move(detail), "not known", "Use a release of Linux");
  if (*version >= oldest_tested) return found(std::move(detail));
  return degraded(std::move(detail), "older than any kernel that Berth is tested on",
                  "Use Linux 6.1 or later; 6.7 for all that the memory checks name");
}

Finding probe_pidfd_open(const HostView& /*host*/) {
  const Fd self = own_pidfd();
  if (self) return found("processes are held by descriptor");
  return missing(fmt::format("pidfd_open: {}", std::strerror(errno)),
                 "Berth does not work: the daemon follows its keepers by these descriptors",
                 "Use Linux 5.3 or later, and allow pidfd_open in the seccomp profile");
}

Finding probe_pidfd_getfd(const HostView& /*host*/) {
  const Fd self = own_pidfd();
  int ends[2] = {-1, -1};
  if (::pipe(ends) != 0) {
    return unknown(fmt::format("no pipe to try it with: {}", std::strerror(errno)), "not known",
                   "Raise RLIMIT_NOFILE");
  }
  const Fd reading(ends[0]);
  const Fd writing(ends[1]);
  const Fd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, self.get(), reading.get(), 0)));
  const int error = errno;
  struct stat original{};
  struct stat copied{};
  if (copy && ::fstat(reading.get(), &original) == 0 && ::fstat(copy.get(), &copied) == 0 &&
      original.st_ino == copied.st_ino)
    return found("a descriptor was copied out of a process");
  return missing(
      fmt::format("pidfd_getfd: {}", std::strerror(error)),
      "a new daemon cannot hold its keepers' listening sockets: clients of a keeper that "
      "dies reconnect later",
      "Use Linux 5.6 or later; in a container: allow pidfd_getfd (CAP_SYS_PTRACE)");
}

Finding probe_pressure(const HostView& host) {
  const auto text = host.read("/proc/pressure/memory");
  if (text && text->starts_with("some")) return found("for CPU, memory and I/O");
  return missing("no /proc/pressure", "nothing says how long machines wait for memory or I/O",
                 "Boot with psi=1 (the kernel needs CONFIG_PSI)");
}

Finding probe_seccomp_notification(const HostView& /*host*/) {
  const std::uint32_t action = SECCOMP_RET_USER_NOTIF;
  seccomp_notif_sizes sizes{};
  if (::syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0 &&
      ::syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) == 0)
    return found("system calls can be answered by a supervisor");
  return missing(fmt::format("not available: {}", std::strerror(errno)),
                 "partially privileged containers will not work (planned)",
                 "Use Linux 5.0 or later with CONFIG_SECCOMP_FILTER");
}

Finding probe_landlock(const HostView& /*host*/) {
  const long version =
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (version > 0) return found(fmt::format("ABI {}", version));
  return missing(errno == EOPNOTSUPP ? "in the kernel, but not switched on" : "not in this kernel",
                 later_guard,
                 "Boot with landlock in lsm= (the kernel needs CONFIG_SECURITY_LANDLOCK)");
}

Finding probe_bpf_lsm(const HostView& host) {
  const auto listed = bpf_is_listed(host);
  if (!listed) {
    return unknown("the kernel does not list its security modules", later_guard,
                   "mount -t securityfs none /sys/kernel/security");
  }
  if (*listed) return found("listed; whether a program may be loaded was not tried");
  return missing("not among the active security modules", later_guard,
                 "Boot with bpf in lsm= (the kernel needs CONFIG_BPF_LSM and BTF)");
}

}  // namespace berth::machine
