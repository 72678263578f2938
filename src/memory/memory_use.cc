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

namespace berth::memory {
namespace {

constexpr std::uint64_t status_block = 512;   // of st_blocks, stat(2)
constexpr std::size_t pieces_at_once = 1024;  // UIO_MAXIOV
constexpr int madvise_page_out = 21;          // MADV_PAGEOUT
constexpr long sys_cachestat = 451;           // Linux 6.5, include/uapi/linux/mman.h
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

Result<void> page_out(const Fd& process, std::span<const iovec> pieces) {
  while (!pieces.empty()) {
    const auto batch = pieces.first(std::min(pieces.size(), pieces_at_once));
    if (::syscall(SYS_process_madvise, process.get(), batch.data(), batch.size(), madvise_page_out,
                  0U) < 0)
      return errno_failure(errno, "cannot swap out a machine's memory");
    pieces = pieces.subspan(batch.size());
  }
  return {};
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

Result<std::uint64_t> trim(GuestMemory& memory) {
  if (!has_swap()) {
    return failure(ErrorKind::precondition,
                   "this host has no swap, which a machine's memory could go to: add some "
                   "(`berth host swap`), or park the machine");
  }
  const Fd process = TRY(open_pidfd(memory.pid()));
  TRY(memory.look());
  std::vector<iovec> pieces;
  std::uint64_t total = 0;
  const auto add = [&](std::uint64_t address, std::uint64_t length) {
    pieces.push_back({.iov_base = std::bit_cast<void*>(address), .iov_len = length});
    total += length;
  };
  for (const PageRange& range : TRY(memory.private_pages()))
    add(memory.address() + range.offset, range.length);
  for (const PageRange& range : TRY(memory.object_pages()))
    add(memory.address() + range.offset, range.length);
  for (const Mapping& mapping : TRY(memory.maps().read())) {
    if (mapping.inode == 0 && mapping.is_writable && !mapping.is_shared && !mapping.is_named)
      add(mapping.address, mapping.length);
  }
  TRY(page_out(process, pieces));
  return total;
}

void drop_page_files(const GuestMemory& memory) {
  const auto process = open_pidfd(memory.pid());
  if (!process) return;
  std::vector<iovec> pieces;
  for (const GuestMemory::Piece& piece : memory.pieces()) {
    if (piece.is_shared || memory.is_of_its_file(piece)) continue;
    pieces.push_back({.iov_base = std::bit_cast<void*>(memory.address() + piece.range.offset),
                      .iov_len = piece.range.length});
  }
  (void)page_out(*process, pieces);
}

}  // namespace berth::memory
