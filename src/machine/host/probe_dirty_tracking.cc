// probes.h: userfaultfd and PAGEMAP_SCAN.

#include <string>

#include <fmt/format.h>

#include "machine/host/dirty_tracking.h"
#include "machine/host/probes.h"

namespace berth::machine {

Finding probe_userfaultfd(const HostView& host) {
  constexpr const char* cost =
      "memory of machines can be neither moved nor checkpointed while they run";
  const auto opened = open_userfaultfd();
  const auto features = opened ? userfaultfd_features(*opened) : failure(opened.error());
  if (!features) {
    return missing(features.error().message(), cost,
                   "Use a kernel with CONFIG_USERFAULTFD=y, and allow userfaultfd in the seccomp "
                   "profile");
  }
  const auto sysctl = host.read_number("/proc/sys/vm/unprivileged_userfaultfd");
  const std::string others =
      sysctl ? fmt::format("; vm.unprivileged_userfaultfd {}", *sysctl) : std::string();
  const auto absent = missing_userfaultfd_features(*features);
  if (absent.empty()) {
    return found(fmt::format("for faults of user mode, with wp_async and wp_unpopulated ({:#x}){}",
                             *features, others));
  }
  return degraded(fmt::format("for faults of user mode, without {} ({:#x}){}",
                              fmt::join(absent, ", "), *features, others),
                  cost, "Use Linux 6.7 or later");
}

Finding probe_userfaultfd_device(const HostView& host) {
  const auto opened = open_userfaultfd_device(host.path("/dev/userfaultfd"));
  const auto features = opened ? userfaultfd_features(*opened) : failure(opened.error());
  if (features) return found(fmt::format("for all faults ({:#x})", *features));
  return missing(features.error().message(),
                 "nothing where userfaultfd is found: faults of user mode are enough",
                 "Use Linux 6.1 or later; pass /dev/userfaultfd into the container and make it "
                 "readable for this user");
}

Finding probe_pagemap_scan(const HostView& /*host*/) {
  const auto tried = try_dirty_scan();
  if (tried) return found("found the pages that were written, and no others");
  return missing(
      tried.error().message(),
      "what a guest wrote is not found: no move and no checkpoint of its memory while it "
      "runs",
      "Use Linux 6.7 or later with CONFIG_PROC_PAGE_MONITOR and CONFIG_PTE_MARKER_UFFD_WP");
}

}  // namespace berth::machine
