// What the kernel can do to find written pages: userfaultfd with asynchronous write protection,
// and PAGEMAP_SCAN (Linux 6.7; userfaultfd(2), ioctl_pagemap_scan(2)). The constants are of
// memory/write_protection.h.
//
// Blocking; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace berth::machine {

/// By the system call, for faults of user mode only, which needs no privilege.
Result<Fd> open_userfaultfd();
/// By the device /dev/userfaultfd, or whatever lies there.
Result<Fd> open_userfaultfd_device(const std::string& device);

/// Bits of UFFD_FEATURE_ that the kernel has. The descriptor is of no other use after this.
Result<std::uint64_t> userfaultfd_features(const Fd& userfaultfd);

/// What Berth's memory features need and `features` lacks, by the kernel's names in lower case
/// ("wp_async").
std::vector<std::string_view> missing_userfaultfd_features(std::uint64_t features);

/// Tracks writes to shared memory of its own and compares what is reported with what was written:
/// one page of four, and after that another one. The error says what was wrong.
Result<void> try_dirty_scan();

}  // namespace berth::machine
