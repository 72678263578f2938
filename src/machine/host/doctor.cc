#include "machine/host/doctor.h"

#include <array>
#include <exception>

#include <fmt/format.h>

#include "machine/host/probes.h"

namespace berth::machine {
namespace {

struct Probe {
  std::string_view name;
  std::string_view group;
  CheckNeed need;
  Finding (*look)(const HostView& host);
};

constexpr auto essential = CheckNeed::essential;
constexpr auto useful = CheckNeed::useful;
constexpr auto optional = CheckNeed::optional;

constexpr std::string_view cpu = "CPU and accelerator";
constexpr std::string_view kernel = "kernel";
constexpr std::string_view memory = "memory";
constexpr std::string_view storage = "storage";
constexpr std::string_view tools = "QEMU and tools";
constexpr std::string_view limits = "limits and access";

constexpr std::array probes = {
    Probe{"cpus", cpu, useful, probe_cpus},
    Probe{"kvm", cpu, useful, probe_kvm},
    Probe{"clock_source", cpu, useful, probe_clock_source},

    Probe{"kernel", kernel, useful, probe_kernel},
    Probe{"io_uring", kernel, essential, probe_io_uring},
    Probe{"io_uring_deferred", kernel, useful, probe_io_uring_deferred},
    Probe{"pidfd_open", kernel, essential, probe_pidfd_open},
    Probe{"pidfd_getfd", kernel, useful, probe_pidfd_getfd},
    Probe{"cgroups", kernel, useful, probe_cgroups},
    Probe{"cgroup_children", kernel, useful, probe_cgroup_children},
    Probe{"freezer", kernel, optional, probe_freezer},
    Probe{"pressure", kernel, optional, probe_pressure},
    Probe{"seccomp_notification", kernel, optional, probe_seccomp_notification},
    Probe{"landlock", kernel, optional, probe_landlock},
    Probe{"bpf_lsm", kernel, optional, probe_bpf_lsm},

    Probe{"memory", memory, useful, probe_memory},
    Probe{"memory_directory", memory, essential, probe_memory_directory},
    Probe{"memfd", memory, useful, probe_memfd},
    Probe{"userfaultfd", memory, useful, probe_userfaultfd},
    Probe{"userfaultfd_device", memory, optional, probe_userfaultfd_device},
    Probe{"pagemap_scan", memory, useful, probe_pagemap_scan},
    Probe{"huge_pages_2m", memory, optional, probe_huge_pages_2m},
    Probe{"huge_pages_1g", memory, optional, probe_huge_pages_1g},
    Probe{"transparent_huge_pages", memory, optional, probe_transparent_huge_pages},
    Probe{"swap", memory, optional, probe_swap},
    Probe{"pageout", memory, optional, probe_pageout},

    Probe{"state_directory", storage, essential, probe_state_directory},
    Probe{"file_system", storage, useful, probe_file_system},
    Probe{"free_space", storage, useful, probe_free_space},
    Probe{"read_ahead", storage, optional, probe_read_ahead},
    Probe{"inodes", storage, useful, probe_inodes},
    Probe{"file_locks", storage, essential, probe_file_locks},
    Probe{"sparse_files", storage, useful, probe_sparse_files},
    Probe{"punch_hole", storage, useful, probe_punch_hole},
    Probe{"zero_range", storage, useful, probe_zero_range},
    Probe{"direct_io", storage, useful, probe_direct_io},
    Probe{"reflink", storage, optional, probe_reflink},

    Probe{"qemu", tools, useful, probe_qemu},
    Probe{"qemu_accelerators", tools, useful, probe_qemu_accelerators},
    Probe{"qemu_nbd", tools, useful, probe_qemu_nbd},
    Probe{"qemu_img", tools, optional, probe_qemu_img},
    Probe{"qemu_storage_daemon", tools, optional, probe_qemu_storage_daemon},
    Probe{"nbdcopy", tools, optional, probe_nbdcopy},
    Probe{"nbdinfo", tools, optional, probe_nbdinfo},
    Probe{"skopeo", tools, useful, probe_skopeo},
    Probe{"umoci", tools, useful, probe_umoci},
    Probe{"mkfs_erofs", tools, useful, probe_mkfs_erofs},
    Probe{"runc", tools, optional, probe_runc},
    Probe{"slirp4netns", tools, optional, probe_slirp4netns},

    Probe{"open_files", limits, useful, probe_open_files},
    Probe{"locked_memory", limits, optional, probe_locked_memory},
    Probe{"memory_maps", limits, optional, probe_memory_maps},
    Probe{"asynchronous_io", limits, optional, probe_asynchronous_io},
    Probe{"processes", limits, useful, probe_processes},
    Probe{"run_directory", limits, essential, probe_run_directory},
    Probe{"berth_group", limits, optional, probe_berth_group},
    Probe{"daemon", limits, useful, probe_daemon},
};

Finding look(const Probe& probe, const HostView& host) {
  try {
    return probe.look(host);
  } catch (const std::exception& exception) {
    return unknown(fmt::format("the check itself failed: {}", exception.what()), "not known",
                   "Report it");
  }
}

}  // namespace

std::vector<HostCheck> examine_host(const HostView& host) {
  std::vector<HostCheck> checks;
  checks.reserve(probes.size());
  for (const Probe& probe : probes) {
    checks.push_back({.name = probe.name,
                      .group = probe.group,
                      .need = probe.need,
                      .finding = look(probe, host)});
  }
  return checks;
}

std::vector<std::string_view> essential_checks() {
  std::vector<std::string_view> names;
  for (const Probe& probe : probes) {
    if (probe.need == CheckNeed::essential) names.push_back(probe.name);
  }
  return names;
}

}  // namespace berth::machine
