// Which pages of another process are in memory, swapped out, or its own (Linux 6.7, PAGEMAP_SCAN;
// Documentation/admin-guide/mm/pagemap.rst).
//
// Blocking, milliseconds for 256 MiB.
#pragma once

#include <cstdint>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"
#include "memory/write_protection.h"

namespace berth::memory {

/// /proc/PID/pagemap, which is of the memory that the process has now. `not_found`.
Result<Fd> open_pagemap(pid_t pid);

struct PageQuery {
  std::uint64_t begin = 0;  // addresses
  std::uint64_t end = 0;
  std::uint64_t any_of = 0;  // page_is_…
  std::uint64_t none_of = 0;
};
/// In order. `categories` says which of `any_of` they are.
Result<std::vector<PageRegion>> find_pages(const Fd& pagemap, const PageQuery& query);

}  // namespace berth::memory
