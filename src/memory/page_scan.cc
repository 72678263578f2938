#include "memory/page_scan.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/ioctl.h>

#include <fmt/format.h>

namespace berth::memory {
namespace {

constexpr std::size_t regions_at_once = 1024;

}  // namespace

Result<Fd> open_pagemap(pid_t pid) {
  const std::string path = fmt::format("/proc/{}/pagemap", pid);
  Fd pagemap(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap) return errno_failure(errno, fmt::format("cannot open '{}'", path));
  return pagemap;
}

Result<std::vector<PageRegion>> find_pages(const Fd& pagemap, const PageQuery& query) {
  std::vector<PageRegion> found;
  for (std::uint64_t at = query.begin; at < query.end;) {
    const std::size_t before = found.size();
    found.resize(before + regions_at_once);
    PagemapScanArgument argument{
        .size = sizeof argument,
        .start = at,
        .end = query.end,
        .vec = reinterpret_cast<std::uintptr_t>(found.data() + before),
        .vec_len = regions_at_once,
        .category_inverted = query.none_of,
        .category_mask = query.none_of,
        .category_anyof_mask = query.any_of,
        .return_mask = query.any_of,
    };
    const int count = ::ioctl(pagemap.get(), pagemap_scan, &argument);
    if (count < 0) return errno_failure(errno, "cannot scan a process's memory");
    if (argument.walk_end <= at)
      return failure(ErrorKind::io_error, "cannot scan a process's memory: no progress");
    found.resize(before + static_cast<std::size_t>(count));
    at = argument.walk_end;
  }
  return found;
}

}  // namespace berth::memory
