// The kernel's side of finding written pages: userfaultfd with asynchronous write protection, and
// PAGEMAP_SCAN (Linux 6.7; userfaultfd(2), ioctl_pagemap_scan(2)). Written out here because the
// headers of older kernels, Debian 12's among them, have none of it. Nothing but constants: the
// preload includes it, which has no C++ library.
#pragma once

#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>

namespace berth::memory {

// linux/userfaultfd.h.
constexpr uint64_t uffd_feature_wp_unpopulated = 1ULL << 13;
constexpr uint64_t uffd_feature_wp_async = 1ULL << 15;
/// What tracking shared memory takes. WP_ASYNC lets the kernel resolve the faults by itself, those
/// of system calls included, and WP_UNPOPULATED remembers the protection of pages that are not
/// there.
constexpr uint64_t tracking_features = uffd_feature_wp_async | uffd_feature_wp_unpopulated |
                                       UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                       UFFD_FEATURE_PAGEFAULT_FLAG_WP;

// linux/fs.h.
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct PagemapScanArgument {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, PagemapScanArgument);
constexpr uint64_t scan_protect_matching = 1 << 0;  // PM_SCAN_WP_MATCHING
constexpr uint64_t scan_check_async = 1 << 1;       // PM_SCAN_CHECK_WPASYNC
constexpr uint64_t page_is_written = 1 << 1;        // PAGE_IS_WRITTEN
constexpr uint64_t page_is_file = 1 << 2;           // PAGE_IS_FILE
constexpr uint64_t page_is_present = 1 << 3;        // PAGE_IS_PRESENT
constexpr uint64_t page_is_swapped = 1 << 4;        // PAGE_IS_SWAPPED

}  // namespace berth::memory
