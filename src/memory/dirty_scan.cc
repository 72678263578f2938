#include "memory/dirty_scan.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include <sys/stat.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "memory/page_scan.h"
#include "memory/process_maps.h"
#include "memory/write_protection.h"

namespace berth::memory {
namespace {

/// A mapping of the file, or a part of it.
struct Piece {
  std::uint64_t address = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

struct FileName {
  dev_t device = 0;
  ino_t inode = 0;
};

/// Shared mappings of the file alone.
std::vector<Piece> pieces_of(const std::vector<Mapping>& mappings, FileName file) {
  std::vector<Piece> pieces;
  for (const Mapping& mapping : mappings) {
    if (!mapping.is_shared || mapping.device != file.device || mapping.inode != file.inode)
      continue;
    pieces.push_back(
        {.address = mapping.address, .offset = mapping.offset, .length = mapping.length});
  }
  std::ranges::sort(pieces, {}, &Piece::offset);
  return pieces;
}

bool covers_once(const std::vector<Piece>& pieces, std::uint64_t size) {
  std::uint64_t covered = 0;
  for (const Piece& piece : pieces) {
    if (piece.offset != covered) return false;
    covered += piece.length;
  }
  return covered >= size;
}

// The kernel has a quick way for exactly this question.
constexpr PageQuery written{.all_of = page_is_written};
// Neither a page nor a mark of protection in the page table, or no page table.
constexpr PageQuery empty{.none_of = page_is_present | page_is_swapped};

}  // namespace

std::uint64_t total_length(const std::vector<PageRange>& ranges) {
  std::uint64_t total = 0;
  for (const PageRange& range : ranges) total += range.length;
  return total;
}

std::vector<PageRange> merged(std::vector<PageRange> ranges) {
  std::ranges::sort(ranges, {}, &PageRange::offset);
  std::vector<PageRange> result;
  for (const PageRange& range : ranges) {
    if (result.empty() || result.back().offset + result.back().length < range.offset) {
      result.push_back(range);
      continue;
    }
    const std::uint64_t end =
        std::max(result.back().offset + result.back().length, range.offset + range.length);
    result.back().length = end - result.back().offset;
  }
  return result;
}

struct DirtyScan::State {
  std::string name;  // for messages
  Fd pagemap;
  std::optional<ProcessMaps> maps;
  FileName file;
  std::uint64_t size = 0;
  bool armed = false;
  std::vector<Piece> mapped;  // where the memory was at the last take()

  Result<void> open(pid_t pid, const std::string& memory_file);
  Result<std::vector<Piece>> find_pieces();
  Result<void> arm(const Piece& piece);
  Result<void> scan(const Piece& piece, PageQuery query, std::uint64_t flags,
                    std::vector<PageRange>& found);
  std::unexpected<Error> scan_failure(int errno_value) const;
};

Result<void> DirtyScan::State::open(pid_t pid, const std::string& memory_file) {
  name = fmt::format("memory '{}' of process {}", memory_file, pid);
  struct stat status{};
  if (::stat(memory_file.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("no memory object '{}'", memory_file));
  file = {.device = status.st_dev, .inode = status.st_ino};
  size = static_cast<std::uint64_t>(status.st_size);
  pagemap = TRY(open_pagemap(pid, name));
  maps = TRY(ProcessMaps::open(pid, name));
  return {};
}

Result<std::vector<Piece>> DirtyScan::State::find_pieces() {
  auto pieces = pieces_of(TRY(maps->read()), file);
  if (!pieces.empty() && covers_once(pieces, size)) return pieces;
  if (armed) {
    return failure(ErrorKind::precondition,
                   fmt::format("the {} is not mapped any more as it was: what has been written "
                               "is not known",
                               name));
  }
  if (pieces.empty()) {
    return failure(ErrorKind::not_found, fmt::format("the {} is not mapped there, shared", name));
  }
  return failure(ErrorKind::precondition, fmt::format("the {} is not mapped once and whole", name));
}

std::unexpected<Error> DirtyScan::State::scan_failure(int errno_value) const {
  // Documented for a mapping without asynchronous write protection. Whoever may not look at the
  // process at all could not open its pagemap.
  if (errno_value == EPERM) {
    if (armed) {
      return failure(ErrorKind::precondition,
                     fmt::format("the {} is not tracked any more: it was mapped anew", name));
    }
    return failure(ErrorKind::unsupported,
                   fmt::format("the {} is not tracked: the process was started without Berth's "
                               "preload, or tracking was switched off",
                               name));
  }
  if (errno_value == ENOTTY) {
    return failure(ErrorKind::unsupported,
                   "this kernel cannot find written memory: PAGEMAP_SCAN takes Linux 6.7");
  }
  return errno_failure(errno_value, fmt::format("cannot scan the {}", name));
}

/// Also what is not there yet: every page table of the piece is made, and every page marked.
Result<void> DirtyScan::State::arm(const Piece& piece) {
  PagemapScanArgument argument{.size = sizeof argument,
                               .flags = scan_protect_matching | scan_check_async,
                               .start = piece.address,
                               .end = piece.address + piece.length};
  if (::ioctl(pagemap.get(), pagemap_scan, &argument) < 0) return scan_failure(errno);
  return {};
}

Result<void> DirtyScan::State::scan(const Piece& piece, PageQuery query, std::uint64_t flags,
                                    std::vector<PageRange>& found) {
  query.flags = flags;
  query.begin = piece.address;
  query.end = piece.address + piece.length;
  auto scanned = scan_pages(pagemap, name, query, [&](const PageRegion& region) {
    found.push_back({.offset = region.start - piece.address + piece.offset,
                     .length = region.end - region.start});
  });
  if (!scanned && scanned.error().errno_value() != 0)
    return scan_failure(scanned.error().errno_value());
  return scanned;
}

DirtyScan::DirtyScan(std::unique_ptr<State> state) : state_(std::move(state)) {}
DirtyScan::~DirtyScan() = default;

Result<std::unique_ptr<DirtyScan>> DirtyScan::attach(pid_t pid, const std::string& memory_file) {
  auto state = std::make_unique<State>();
  TRY(state->open(pid, memory_file));
  // Only a look: it protects nothing.
  for (const Piece& piece : TRY(state->find_pieces())) {
    PageRegion region{};
    PagemapScanArgument argument{.size = sizeof argument,
                                 .flags = scan_check_async,
                                 .start = piece.address,
                                 .end = piece.address + piece.length,
                                 .vec = reinterpret_cast<std::uintptr_t>(&region),
                                 .vec_len = 1,
                                 .max_pages = 1,
                                 .return_mask = page_is_written};
    if (::ioctl(state->pagemap.get(), pagemap_scan, &argument) < 0)
      return state->scan_failure(errno);
  }
  return std::unique_ptr<DirtyScan>(new DirtyScan(std::move(state)));
}

Result<std::vector<PageRange>> DirtyScan::take() {
  State& state = *state_;
  state.mapped = TRY(state.find_pieces());
  if (!state.armed) {
    for (const Piece& piece : state.mapped) TRY(state.arm(piece));
    state.armed = true;
    return std::vector<PageRange>();
  }
  constexpr std::uint64_t flags = scan_protect_matching | scan_check_async;
  std::vector<PageRange> found;
  for (const Piece& piece : state.mapped) {
    TRY(state.scan(piece, written, flags, found));
    TRY(state.scan(piece, empty, flags, found));
  }
  return merged(std::move(found));
}

Result<std::vector<PageRange>> DirtyScan::written_of(PageRange range) {
  std::vector<PageRange> found;
  for (const Piece& piece : state_->mapped) {
    const std::uint64_t start = std::max(range.offset, piece.offset);
    const std::uint64_t end = std::min(range.offset + range.length, piece.offset + piece.length);
    if (start >= end) continue;
    TRY(state_->scan(
        {.address = piece.address + (start - piece.offset), .offset = start, .length = end - start},
        written, scan_check_async, found));
  }
  return merged(std::move(found));
}

}  // namespace berth::memory
