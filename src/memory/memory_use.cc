#include "memory/memory_use.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <fstream>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/process.h"
#include "base/units.h"
#include "memory/page_advice.h"
#include "memory/page_scan.h"
#include "memory/process_maps.h"

namespace berth::memory {
namespace {

constexpr std::uint64_t status_block = 512;  // of st_blocks, stat(2)
constexpr long sys_cachestat = 451;          // Linux 6.5, include/uapi/linux/mman.h
constexpr int rollup_lines_max = 64;

/// Anonymous pages of the whole process. Linux, Documentation/filesystems/proc.rst.
Result<std::uint64_t> anonymous_bytes(pid_t pid) {
  std::ifstream rollup(fmt::format("/proc/{}/smaps_rollup", pid));
  std::string line;
  for (int i = 0; i < rollup_lines_max && std::getline(rollup, line); ++i) {
    constexpr std::string_view name = "Anonymous:";
    if (line.starts_with(name)) return std::strtoull(line.c_str() + name.size(), nullptr, 10) * KiB;
  }
  return failure(ErrorKind::disconnected,
                 fmt::format("cannot see how much memory process {} has: it has ended", pid));
}

/// Of a file in memory, what of it is in RAM; all of `allocated` where the kernel does not tell.
std::uint64_t resident_bytes(const Fd& file, std::uint64_t allocated) {
  struct Range {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;  // to the end
  } range;
  struct Cached {
    std::uint64_t cached = 0;  // pages
    std::uint64_t dirty = 0;
    std::uint64_t written_back = 0;
    std::uint64_t evicted = 0;
    std::uint64_t recently_evicted = 0;
  } cached;
  if (::syscall(sys_cachestat, file.get(), &range, &cached, 0U) != 0) return allocated;
  return std::min(cached.cached * page_size, allocated);
}

iovec piece_of(std::uint64_t address, std::uint64_t length) {
  return {.iov_base = std::bit_cast<void*>(address), .iov_len = length};
}

/// Anonymous memory of the process beside the guest's: heap, stacks, translated code.
Result<std::vector<iovec>> pieces_of_its_own(ProcessMaps& maps) {
  std::vector<iovec> pieces;
  for (const Mapping& mapping : TRY(maps.read())) {
    if (mapping.inode == 0 && mapping.is_writable && !mapping.is_shared && !mapping.is_named)
      pieces.push_back(piece_of(mapping.address, mapping.length));
  }
  return pieces;
}

}  // namespace

Result<MemoryUse> memory_use(const GuestMemory& memory) {
  const std::uint64_t all_private = total_length(TRY(memory.private_pages()));
  const std::uint64_t present = TRY(memory.private_bytes_present());
  MemoryUse use{.guest = present, .swapped = all_private - std::min(all_private, present)};
  if (!memory.is_clone()) {
    struct stat status{};
    if (::fstat(memory.file().fd.get(), &status) != 0)
      return errno_failure(errno, fmt::format("cannot look at '{}'", memory.file().path));
    const std::uint64_t allocated = static_cast<std::uint64_t>(status.st_blocks) * status_block;
    const std::uint64_t resident = resident_bytes(memory.file().fd, allocated);
    use.guest += resident;
    use.swapped += allocated - resident;
  }
  const std::uint64_t anonymous = TRY(anonymous_bytes(memory.pid()));
  use.process = anonymous - std::min(anonymous, present);
  return use;
}

bool has_swap() {
  struct sysinfo host{};
  return ::sysinfo(&host) == 0 && host.totalswap > 0;
}

Result<std::vector<PageRegion>> own_pages(pid_t pid) {
  const std::string name = fmt::format("process {}", pid);
  auto maps = TRY(ProcessMaps::open(pid, name));
  const Fd pagemap = TRY(open_pagemap(pid, name));
  std::vector<PageRegion> found;
  for (const iovec& piece : TRY(pieces_of_its_own(maps))) {
    const auto begin = std::bit_cast<std::uint64_t>(piece.iov_base);
    TRY(scan_pages(pagemap, name,
                   {.begin = begin, .end = begin + piece.iov_len, .all_of = page_is_present},
                   [&](const PageRegion& region) { found.push_back(region); }));
  }
  return found;
}

Result<void> swap_in(pid_t pid, std::span<const PageRegion> pages) {
  if (pages.empty() || !has_swap()) return {};
  const Fd process = TRY(open_pidfd(pid));
  std::vector<iovec> pieces;
  for (const PageRegion& region : pages)
    pieces.push_back(piece_of(region.start, region.end - region.start));
  return advise_pages(process, pieces, MADV_WILLNEED);
}

Result<std::uint64_t> trim(GuestMemory& memory) {
  if (!has_swap()) {
    return failure(ErrorKind::precondition,
                   "this host has no swap, which a machine's memory could go to: add some "
                   "(`berth host swap`), or park the machine");
  }
  const Fd process = TRY(open_pidfd(memory.pid()));
  TRY(memory.look());
  std::vector<iovec> pieces = TRY(pieces_of_its_own(memory.maps()));
  for (const auto& ranges : {TRY(memory.private_pages()), TRY(memory.object_pages())})
    for (const PageRange& range : ranges)
      pieces.push_back(piece_of(memory.address() + range.offset, range.length));
  TRY(advise_pages(process, pieces, MADV_PAGEOUT));
  std::uint64_t total = 0;
  for (const iovec& piece : pieces) total += piece.iov_len;
  return total;
}

void drop_page_files(const GuestMemory& memory) {
  const auto process = open_pidfd(memory.pid());
  if (!process) return;
  std::vector<iovec> pieces;
  for (const GuestMemory::Piece& piece : memory.pieces()) {
    if (piece.is_shared || memory.is_of_its_file(piece)) continue;
    pieces.push_back(piece_of(memory.address() + piece.range.offset, piece.range.length));
  }
  (void)advise_pages(*process, pieces, MADV_PAGEOUT);
}

}  // namespace berth::memory
