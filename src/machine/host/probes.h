// The doctor's probes, each behind one line of its list (doctor.cc): tries one thing, cleans up
// after itself, and says what it found. Blocking; any thread; none fails or changes the host.
#pragma once

#include "machine/host/host_check.h"
#include "machine/host/host_view.h"

namespace berth::machine {

// CPU and accelerator: probe_cpu.cc.
Finding probe_cpus(const HostView& host);
Finding probe_kvm(const HostView& host);
Finding probe_clock_source(const HostView& host);

// Kernel: probe_io_uring.cc, probe_kernel.cc, probe_cgroups.cc.
Finding probe_kernel(const HostView& host);
Finding probe_io_uring(const HostView& host);
Finding probe_io_uring_deferred(const HostView& host);
Finding probe_pidfd_open(const HostView& host);
Finding probe_pidfd_getfd(const HostView& host);
Finding probe_cgroups(const HostView& host);
Finding probe_cgroup_children(const HostView& host);
Finding probe_freezer(const HostView& host);
Finding probe_pressure(const HostView& host);
Finding probe_seccomp_notification(const HostView& host);
Finding probe_landlock(const HostView& host);
Finding probe_bpf_lsm(const HostView& host);

// Memory: probe_memory.cc, probe_dirty_tracking.cc, probe_huge_pages.cc.
Finding probe_memory(const HostView& host);
Finding probe_memory_directory(const HostView& host);
Finding probe_memfd(const HostView& host);
Finding probe_swap(const HostView& host);
Finding probe_pageout(const HostView& host);
Finding probe_userfaultfd(const HostView& host);
Finding probe_userfaultfd_device(const HostView& host);
Finding probe_pagemap_scan(const HostView& host);
Finding probe_huge_pages_2m(const HostView& host);
Finding probe_huge_pages_1g(const HostView& host);
Finding probe_transparent_huge_pages(const HostView& host);

// Storage, all on the state directory's file system: probe_storage.cc, probe_files.cc.
Finding probe_state_directory(const HostView& host);
Finding probe_file_system(const HostView& host);
Finding probe_free_space(const HostView& host);
Finding probe_read_ahead(const HostView& host);
Finding probe_inodes(const HostView& host);
Finding probe_file_locks(const HostView& host);
Finding probe_sparse_files(const HostView& host);
Finding probe_punch_hole(const HostView& host);
Finding probe_zero_range(const HostView& host);
Finding probe_direct_io(const HostView& host);
Finding probe_reflink(const HostView& host);

// QEMU and tools: probe_tools.cc.
Finding probe_qemu(const HostView& host);
Finding probe_qemu_accelerators(const HostView& host);
Finding probe_qemu_nbd(const HostView& host);
Finding probe_qemu_img(const HostView& host);
Finding probe_qemu_storage_daemon(const HostView& host);
Finding probe_nbdcopy(const HostView& host);
Finding probe_nbdinfo(const HostView& host);
Finding probe_skopeo(const HostView& host);
Finding probe_umoci(const HostView& host);
Finding probe_mkfs_erofs(const HostView& host);
Finding probe_runc(const HostView& host);
Finding probe_slirp4netns(const HostView& host);

// Limits and access: probe_limits.cc, probe_access.cc.
Finding probe_open_files(const HostView& host);
Finding probe_locked_memory(const HostView& host);
Finding probe_memory_maps(const HostView& host);
Finding probe_asynchronous_io(const HostView& host);
Finding probe_processes(const HostView& host);
Finding probe_run_directory(const HostView& host);
Finding probe_berth_group(const HostView& host);
Finding probe_daemon(const HostView& host);

}  // namespace berth::machine
