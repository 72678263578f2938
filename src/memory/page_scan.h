// Which pages of a process are in memory, swapped out, its own, or written (Linux 6.7,
// PAGEMAP_SCAN; Documentation/admin-guide/mm/pagemap.rst).
//
// Blocking, milliseconds for 256 MiB.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"
#include "memory/write_protection.h"

namespace berth::memory {

/// /proc/PID/pagemap, which is of the memory that the process has now. `name` is that of what is
/// looked at, for messages.
Result<Fd> open_pagemap(pid_t pid, const std::string& name);

struct PageQuery {
  std::uint64_t begin = 0;  // addresses
  std::uint64_t end = 0;
  std::uint64_t flags = 0;   // scan_…
  std::uint64_t all_of = 0;  // page_is_…
  std::uint64_t none_of = 0;
  std::uint64_t any_of = 0;
};
/// Pages next to each other, in order. The error has the kernel's number.
Result<void> scan_pages(const Fd& pagemap, const std::string& name, const PageQuery& query,
                        const std::function<void(const PageRegion&)>& visit);

}  // namespace berth::memory
