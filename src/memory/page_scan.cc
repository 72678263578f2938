#include "memory/page_scan.h"

#include <algorithm>
#include <cerrno>
#include <span>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>

#include <fmt/format.h>

namespace berth::memory {
namespace {

constexpr std::size_t regions_at_once = 4096;

}  // namespace

Result<Fd> open_pagemap(pid_t pid, const std::string& name) {
  Fd pagemap(::open(fmt::format("/proc/{}/pagemap", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap) return errno_failure(errno, fmt::format("cannot look at the {}", name));
  return pagemap;
}

Result<void> scan_pages(const Fd& pagemap, const std::string& name, const PageQuery& query,
                        const std::function<void(const PageRegion&)>& visit) {
  std::vector<PageRegion> regions(regions_at_once);
  for (std::uint64_t at = query.begin; at < query.end;) {
    const std::uint64_t always = query.all_of | query.none_of;
    PagemapScanArgument argument{.size = sizeof argument,
                                 .flags = query.flags,
                                 .start = at,
                                 .end = query.end,
                                 .vec = reinterpret_cast<std::uintptr_t>(regions.data()),
                                 .vec_len = regions.size(),
                                 .category_inverted = query.none_of,
                                 .category_mask = always,
                                 .category_anyof_mask = query.any_of,
                                 .return_mask = always | query.any_of};
    const int count = ::ioctl(pagemap.get(), pagemap_scan, &argument);
    if (count < 0) return errno_failure(errno, fmt::format("cannot scan the {}", name));
    // Where more than 512 regions were found, Linux (seen with 6.18) says the end of the last 512
    // that filled its buffer, not of the last region.
    std::uint64_t end = argument.walk_end;
    for (const PageRegion& region : std::span(regions).first(static_cast<std::size_t>(count))) {
      visit(region);
      end = std::max(end, region.end);
    }
    if (end <= at)
      return failure(ErrorKind::io_error, fmt::format("cannot scan the {}: no progress", name));
    at = end;
  }
  return {};
}

}  // namespace berth::memory
