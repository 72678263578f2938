#include "memory/guest_memory.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include <sys/stat.h>
#include <sys/uio.h>

#include <fmt/format.h>

#include "memory/page_scan.h"
#include "memory/preload/channel_format.h"

namespace berth::memory {
namespace {

std::string name_of(const GuestProcess& process) {
  return fmt::format("memory '{}' of process {}", process.memory_file, process.pid);
}

}  // namespace

GuestMemory::GuestMemory(GuestProcess process, ProcessMaps maps)
    : process_(std::move(process)), maps_(std::move(maps)) {}

Result<std::unique_ptr<GuestMemory>> GuestMemory::open(const GuestProcess& process) {
  // First: the process that answers now is the one that we look at from now on.
  auto maps = TRY(ProcessMaps::open(process.pid, name_of(process)));
  Fd pagemap = TRY(open_pagemap(process.pid, name_of(process)));
  auto channel = TRY(MemoryChannel::connect(process.channel));
  const channel::Answer described = TRY(channel.describe());
  std::unique_ptr<GuestMemory> memory(new GuestMemory(process, std::move(maps)));
  memory->is_clone_ = described.is_clone != 0;
  memory->file_ =
      TRY(MemoryFile::open(process.memory_file, memory->is_clone_ ? MemoryFile::Access::read
                                                                  : MemoryFile::Access::write));
  struct stat status{};
  if (::fstat(memory->file_.fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", process.memory_file));
  if (described.size != memory->file_.size || described.device != status.st_dev ||
      described.inode != status.st_ino) {
    return failure(ErrorKind::precondition, fmt::format("process {} has another memory than '{}'",
                                                        process.pid, process.memory_file));
  }
  memory->pagemap_ = std::move(pagemap);
  memory->address_ = described.address;
  memory->device_ = status.st_dev;
  memory->inode_ = status.st_ino;
  TRY(memory->look());
  return memory;
}

Result<void> GuestMemory::map(const Fd& file, std::span<const PageRange> ranges) {
  if (ranges.empty()) return {};
  auto channel = TRY(MemoryChannel::connect(process_.channel));
  return channel.map(file, ranges);
}

Result<void> GuestMemory::look() {
  std::vector<Piece> pieces;
  std::uint64_t end = 0;
  bool is_good = true;
  for (const Mapping& mapping : TRY(maps_.read())) {
    if (!is_in_memory(mapping)) continue;
    const std::uint64_t offset = mapping.address - address_;
    is_good = is_good && offset == end && mapping.offset == offset && mapping.inode != 0 &&
              mapping.is_writable && offset % channel::granule_min == 0;
    end = offset + mapping.length;
    pieces.push_back({.range = {.offset = offset, .length = mapping.length},
                      .device = mapping.device,
                      .inode = mapping.inode,
                      .is_shared = mapping.is_shared});
    is_good = is_good && (!mapping.is_shared || (is_of_its_file(pieces.back()) && !is_clone_));
  }
  if (!is_good || end != file_.size) {
    return failure(ErrorKind::precondition,
                   fmt::format("the {} is not mapped as Berth maps it", name_of(process_)));
  }
  pieces_ = std::move(pieces);
  return {};
}

bool GuestMemory::is_of_its_file(const Piece& piece) const {
  return piece.device == device_ && piece.inode == inode_;
}

Result<void> GuestMemory::scan(const Piece& piece, Whose whose, std::uint64_t any_of,
                               std::vector<PageRange>& found) const {
  const std::uint64_t begin = address_ + piece.range.offset;
  return scan_pages(
      pagemap_, name_of(process_),
      {.begin = begin,
       .end = begin + piece.range.length,
       // Not of a file: what was written to a private mapping.
       .none_of = whose == Whose::the_process ? page_is_file : 0,
       .any_of = any_of},
      [&](const PageRegion& region) {
        found.push_back({.offset = region.start - address_, .length = region.end - region.start});
      });
}

Result<std::vector<PageRange>> GuestMemory::private_pages() const {
  std::vector<PageRange> found;
  for (const Piece& piece : pieces_)
    if (!piece.is_shared)
      TRY(scan(piece, Whose::the_process, page_is_present | page_is_swapped, found));
  return merged(std::move(found));
}

Result<std::uint64_t> GuestMemory::private_bytes_present() const {
  std::vector<PageRange> found;
  for (const Piece& piece : pieces_)
    if (!piece.is_shared) TRY(scan(piece, Whose::the_process, page_is_present, found));
  return total_length(found);
}

Result<std::vector<PageRange>> GuestMemory::present_pages(const Piece& piece) const {
  std::vector<PageRange> found;
  TRY(scan(piece, Whose::anybodys, page_is_present, found));
  return found;
}

Result<std::vector<PageRange>> GuestMemory::object_pages() const {
  std::vector<PageRange> found;
  for (const Piece& piece : pieces_) {
    if (!piece.is_shared) continue;
    const std::uint64_t end = piece.range.offset + piece.range.length;
    for (std::uint64_t at = piece.range.offset; at < end;) {
      const auto extent = TRY(file_.next_data(at));
      if (extent.start >= end) break;
      at = std::min(extent.end, end);
      found.push_back({.offset = extent.start, .length = at - extent.start});
    }
  }
  return merged(std::move(found));
}

Result<void> GuestMemory::read(std::uint64_t offset, MutableBytes into) const {
  for (const Piece& piece : pieces_) {
    const std::uint64_t end = piece.range.offset + piece.range.length;
    if (into.empty() || end <= offset) continue;
    const MutableBytes part = into.first(std::min<std::uint64_t>(into.size(), end - offset));
    TRY(piece.is_shared ? file_.read(offset, part) : read_process(offset, part));
    into = into.subspan(part.size());
    offset += part.size();
  }
  if (into.empty()) return {};
  return failure(ErrorKind::invalid_argument,
                 fmt::format("the {} has no more than {} bytes", name_of(process_), size()));
}

Result<void> GuestMemory::read_process(std::uint64_t offset, MutableBytes into) const {
  while (!into.empty()) {
    iovec local{.iov_base = into.data(), .iov_len = into.size()};
    iovec remote{.iov_base = std::bit_cast<void*>(address_ + offset), .iov_len = into.size()};
    const ssize_t got = ::process_vm_readv(process_.pid, &local, 1, &remote, 1, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return errno_failure(got < 0 ? errno : EIO,
                           fmt::format("cannot read the {}", name_of(process_)));
    }
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

}  // namespace berth::memory
