#include "memory/memory_image.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/aligned_buffer.h"
#include "base/checksum.h"
#include "base/units.h"
#include "memory/image_output.h"
#include "memory/memory_file.h"

namespace berth::memory {
namespace {

// Stays in the cache of a core while it is read and looked at.
constexpr std::size_t piece_max = ImageOutput::buffer_size;
// Shorter ranges are not left out of a copy: two writes take the disk longer than these bytes.
constexpr std::size_t left_out_min = 64 * KiB;
constexpr std::size_t checksum_piece = 256 * KiB;

/// Memory for pages, the newest of each. What is touched costs no fault to write: for the instant
/// when a machine stands still.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    if (memory_ != nullptr) ::munmap(memory_, size_);
  }

  /// For `pages` pages of which `size` bytes can be staged.
  Result<void> prepare(std::size_t pages, std::size_t size) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) return no_memory(errno, size);
    ::madvise(memory, size, MADV_HUGEPAGE);
    ::madvise(memory, size, MADV_DONTDUMP);
    memory_ = static_cast<std::byte*>(memory);
    size_ = size;
    slots_.assign(pages, no_slot);
    return {};
  }
  bool is_prepared() const { return memory_ != nullptr; }
  std::size_t left() const { return size_ - used_ * page_size; }

  Result<void> touch(std::uint64_t bytes) {
    const std::size_t wanted =
        std::min<std::uint64_t>(round_up(used_ * page_size + bytes, page_size), size_);
    if (wanted <= touched_) return {};
    if (::madvise(memory_ + touched_, wanted - touched_, MADV_POPULATE_WRITE) != 0)
      return no_memory(errno, wanted);
    touched_ = wanted;
    return {};
  }

  bool has(std::uint64_t page) const { return page < slots_.size() && slots_[page] != no_slot; }
  /// Where a run of pages from `page` on lies, as long as it lies in one piece; at most `count`.
  /// They are staged from now on.
  MutableBytes place(std::uint64_t page, std::uint64_t count) {
    const std::uint32_t first = slot(page);
    std::uint64_t run = 1;
    while (run < count && (has(page + run) ? slots_[page + run] : used_) == first + run) {
      slot(page + run);
      ++run;
    }
    return {memory_ + first * page_size, run * page_size};
  }
  Bytes at(std::uint64_t page) const {
    return {memory_ + std::size_t{slots_[page]} * page_size, page_size};
  }
  bool is_empty() const { return used_ == 0; }
  /// The memory stays touched.
  void clear() {
    std::ranges::fill(slots_, no_slot);
    used_ = 0;
  }

 private:
  static constexpr std::uint32_t no_slot = ~std::uint32_t{0};

  std::uint32_t slot(std::uint64_t page) {
    if (!has(page)) slots_[page] = used_++;
    return slots_[page];
  }
  static std::unexpected<Error> no_memory(int error, std::size_t size) {
    return errno_failure(error, fmt::format("no memory for {} to stage in", format_size(size)));
  }

  std::byte* memory_ = nullptr;
  std::size_t size_ = 0;
  std::size_t touched_ = 0;
  std::uint32_t used_ = 0;            // slots
  std::vector<std::uint32_t> slots_;  // by page
};

Result<void> check_same_size(const MemoryFile& image, const MemoryFile& memory) {
  if (image.size == memory.size) return {};
  return failure(ErrorKind::invalid_argument,
                 fmt::format("the memory image '{}' has {} bytes, and the memory '{}' has {}",
                             image.path, image.size, memory.path, memory.size));
}

/// Calls `write(start, end)` for each run of pages for which `is_left_out(at)` is false; all are
/// offsets into `length` bytes.
template <typename IsLeftOut, typename Write>
Result<void> write_runs(std::size_t length, IsLeftOut is_left_out, Write write) {
  for (std::size_t start = 0; start < length;) {
    if (is_left_out(start)) {
      start += page_size;
      continue;
    }
    std::size_t end = start + page_size;
    while (end < length && !is_left_out(end)) end += page_size;
    TRY(write(start, end));
    start = end;
  }
  return {};
}

void append_page(std::vector<PageRange>& ranges, std::uint64_t offset) {
  if (!ranges.empty() && ranges.back().offset + ranges.back().length == offset)
    ranges.back().length += page_size;
  else
    ranges.push_back({.offset = offset, .length = page_size});
}

Result<void> sync_name(const std::string& path) {
  const std::string parent = std::filesystem::absolute(path).parent_path();
  const Fd directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::fsync(directory.get()) != 0)
    return errno_failure(errno, fmt::format("cannot sync the directory '{}'", parent));
  return {};
}

}  // namespace

struct MemoryImageWriter::State {
  MemoryFile memory;
  std::uint64_t bytes_written = 0;
  std::vector<bool> in_image;  // pages that were written there; all others are holes
  Staging staging;
  std::unique_ptr<ImageOutput> image;  // goes before what it writes from
  bool finished = false;

  Result<void> check_ranges(const std::vector<PageRange>& ranges) const;
  Result<void> copy_piece(std::uint64_t offset, std::uint64_t length);
  Result<void> copy_ranges(const std::vector<PageRange>& ranges);
  Result<void> stage(const std::vector<PageRange>& ranges);
  Result<void> write_pages(std::uint64_t offset, Bytes pages);
  Result<void> write_staged();
};

Result<void> MemoryImageWriter::State::check_ranges(const std::vector<PageRange>& ranges) const {
  std::uint64_t end = 0;
  for (const auto& [offset, length] : ranges) {
    if (offset % page_size == 0 && length % page_size == 0 && offset >= end &&
        offset <= memory.size && length <= memory.size - offset) {
      end = offset + length;
      continue;
    }
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{} bytes at {} are no pages of the memory '{}'", length, offset, memory.path));
  }
  return {};
}

/// Zero pages are left out where the image has a hole.
Result<void> MemoryImageWriter::State::write_pages(std::uint64_t offset, Bytes pages) {
  const auto stays_hole = [&](std::size_t at) {
    return !in_image[(offset + at) / page_size] && is_zero(pages.subspan(at, page_size));
  };
  return write_runs(pages.size(), stays_hole,
                    [&](std::size_t start, std::size_t end) -> Result<void> {
                      TRY(image->write(offset + start, pages.subspan(start, end - start)));
                      for (std::uint64_t at = start; at < end; at += page_size)
                        in_image[(offset + at) / page_size] = true;
                      bytes_written += end - start;
                      return {};
                    });
}

Result<void> MemoryImageWriter::State::copy_piece(std::uint64_t offset, std::uint64_t length) {
  const MutableBytes bytes = TRY(image->buffer()).first(length);
  TRY(memory.read(offset, bytes));
  return write_pages(offset, bytes);
}

Result<void> MemoryImageWriter::State::copy_ranges(const std::vector<PageRange>& ranges) {
  for (const auto& [offset, length] : ranges) {
    for (std::uint64_t done = 0; done < length; done += piece_max)
      TRY(copy_piece(offset + done, std::min<std::uint64_t>(length - done, piece_max)));
  }
  return image->settle();
}

/// There is room for them.
Result<void> MemoryImageWriter::State::stage(const std::vector<PageRange>& ranges) {
  for (const auto& [offset, length] : ranges) {
    for (std::uint64_t done = 0; done < length;) {
      const MutableBytes place =
          staging.place((offset + done) / page_size, (length - done) / page_size);
      TRY(memory.read(offset + done, place));
      done += place.size();
    }
  }
  return {};
}

/// In the order of the image, whatever order they were staged in: fewer and longer writes are worth
/// another copy.
Result<void> MemoryImageWriter::State::write_staged() {
  if (staging.is_empty()) return {};
  std::vector<PageRange> runs;
  for (std::uint64_t page = 0; page < in_image.size();) {
    MutableBytes bytes = TRY(image->buffer());
    runs.clear();
    for (std::size_t used = 0; page < in_image.size() && used < bytes.size(); ++page) {
      if (!staging.has(page)) continue;
      std::ranges::copy(staging.at(page), bytes.begin() + used);
      append_page(runs, page * page_size);
      used += page_size;
    }
    for (const auto& [offset, length] : runs) {
      TRY(write_pages(offset, bytes.first(length)));
      bytes = bytes.subspan(length);
    }
  }
  TRY(image->settle());
  staging.clear();
  return {};
}

MemoryImageWriter::MemoryImageWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}

MemoryImageWriter::~MemoryImageWriter() {
  if (!state_->finished) ::unlink(state_->image->path().c_str());
}

Result<std::unique_ptr<MemoryImageWriter>> MemoryImageWriter::create(const std::string& memory_file,
                                                                     const std::string& path) {
  auto state = std::make_unique<State>();
  state->memory = TRY(MemoryFile::open(memory_file, MemoryFile::Access::read));
  state->image = TRY(ImageOutput::create(path, state->memory.size));
  state->in_image.resize(state->memory.size / page_size);
  return std::unique_ptr<MemoryImageWriter>(new MemoryImageWriter(std::move(state)));
}

Result<std::vector<PageRange>> MemoryImageWriter::copy_all(
    const std::atomic<bool>& stop, const std::function<void(std::uint64_t)>& report,
    const LeaveOut& leave_out) {
  State& state = *state_;
  std::vector<PageRange> left_out;
  const auto copy_until = [&](std::uint64_t& at, std::uint64_t end) -> Result<void> {
    if (at < end) TRY(state.copy_piece(at, end - at));
    at = end;
    return {};
  };
  for (std::uint64_t at = 0; at < state.memory.size;) {
    const auto extent = TRY(state.memory.next_data(at));
    for (at = extent.start; at < extent.end;) {
      if (stop) return failure(ErrorKind::cancelled, "copying the memory was cancelled");
      const std::uint64_t end = std::min<std::uint64_t>(extent.end, at + piece_max);
      if (leave_out) {
        for (const PageRange& range : TRY(leave_out({.offset = at, .length = end - at}))) {
          if (range.length < left_out_min) continue;
          TRY(copy_until(at, range.offset));
          at += range.length;
          left_out.push_back(range);
        }
      }
      TRY(copy_until(at, end));
      if (report) report(at);
    }
  }
  TRY(state.image->settle());
  if (report) report(state.memory.size);
  TRY(state.memory.check_size());
  return left_out;
}

Result<void> MemoryImageWriter::copy(const std::vector<PageRange>& ranges,
                                     std::uint64_t staging_reserved) {
  State& state = *state_;
  TRY(state.check_ranges(ranges));
  const auto room = [&] { return staging_left() - std::min(staging_left(), staging_reserved); };
  if (room() == 0 && unstaged(ranges) > 0) TRY(state.write_staged());
  std::uint64_t free = room();
  std::vector<PageRange> staged;
  std::vector<PageRange> others;
  for (const auto& [offset, length] : ranges) {
    for (std::uint64_t at = offset; at < offset + length; at += page_size) {
      const bool has = state.staging.has(at / page_size);
      append_page(has || free >= page_size ? staged : others, at);
      if (!has && free >= page_size) free -= page_size;
    }
  }
  TRY(state.stage(staged));
  return state.copy_ranges(others);
}

Result<void> MemoryImageWriter::sync() { return state_->image->sync(); }

Result<void> MemoryImageWriter::prepare_staging(std::uint64_t staging_max) {
  State& state = *state_;
  if (state.staging.is_prepared() || staging_max == 0)
    return failure(ErrorKind::invalid_argument, "staging is prepared once, for at least one byte");
  return state.staging.prepare(state.memory.size / page_size, staging_max);
}

Result<void> MemoryImageWriter::touch_staging(std::uint64_t bytes) {
  return state_->staging.touch(bytes);
}

Result<void> MemoryImageWriter::stage(const std::vector<PageRange>& ranges) {
  State& state = *state_;
  if (!state.staging.is_prepared())
    return failure(ErrorKind::precondition, "nothing is prepared to stage in");
  TRY(state.check_ranges(ranges));
  const std::uint64_t wanted = unstaged(ranges);
  const std::uint64_t left = staging_left();
  if (wanted > left) {
    return failure(ErrorKind::limit, fmt::format("{} are to be staged, and there is room for {}",
                                                 format_size(wanted), format_size(left)));
  }
  return state.stage(ranges);
}

std::uint64_t MemoryImageWriter::unstaged(const std::vector<PageRange>& ranges) const {
  std::uint64_t bytes = 0;
  for (const auto& [offset, length] : ranges) {
    for (std::uint64_t at = offset; at < offset + length; at += page_size)
      bytes += state_->staging.has(at / page_size) ? 0 : page_size;
  }
  return bytes;
}

std::uint64_t MemoryImageWriter::staging_left() const { return state_->staging.left(); }

Result<void> MemoryImageWriter::finish() {
  State& state = *state_;
  TRY(state.memory.check_size());
  TRY(state.write_staged());
  TRY(sync());
  TRY(sync_name(state.image->path()));
  state.finished = true;
  return {};
}

std::uint64_t MemoryImageWriter::bytes_written() const { return state_->bytes_written; }

Result<void> load_memory_image(const std::string& path, const std::string& memory_file) {
  const auto image = TRY(MemoryFile::open(path, MemoryFile::Access::read));
  const auto memory = TRY(MemoryFile::open(memory_file, MemoryFile::Access::write));
  TRY(check_same_size(image, memory));
  if (const auto present = TRY(memory.next_data(0)); present.start != memory.size) {
    return failure(ErrorKind::precondition,
                   fmt::format("the memory '{}' is not empty", memory_file));
  }
  const AlignedBuffer buffer(piece_max);
  for (std::uint64_t at = 0; at < image.size;) {
    const auto extent = TRY(image.next_data(at));
    for (at = extent.start; at < extent.end;) {
      const MutableBytes bytes = buffer.first(std::min<std::uint64_t>(extent.end - at, piece_max));
      TRY(image.read(at, bytes));
      // A page of zeros would take space for nothing.
      TRY(write_runs(
          bytes.size(), [&](std::size_t page) { return is_zero(bytes.subspan(page, page_size)); },
          [&](std::size_t start, std::size_t end) {
            return memory.write(at + start, bytes.subspan(start, end - start));
          }));
      at += bytes.size();
    }
  }
  return image.check_size();
}

Result<std::uint64_t> first_difference(const std::string& path, const std::string& memory_file) {
  const auto image = TRY(MemoryFile::open(path, MemoryFile::Access::read));
  const auto memory = TRY(MemoryFile::open(memory_file, MemoryFile::Access::read));
  TRY(check_same_size(image, memory));
  const AlignedBuffer left(piece_max);
  const AlignedBuffer right(piece_max);
  for (std::uint64_t at = 0; at < image.size; at += piece_max) {
    const MutableBytes ours = left.first(std::min<std::uint64_t>(image.size - at, piece_max));
    const MutableBytes theirs = right.first(ours.size());
    TRY(image.read(at, ours));
    TRY(memory.read(at, theirs));
    const auto [differing, ignored] = std::ranges::mismatch(ours, theirs);
    if (differing != ours.end()) return at + static_cast<std::uint64_t>(differing - ours.begin());
  }
  return image.size;
}

Result<std::uint64_t> memory_checksum(const std::string& path) {
  const auto file = TRY(MemoryFile::open(path, MemoryFile::Access::read));
  const AlignedBuffer buffer(checksum_piece);
  std::vector<std::byte> sums;
  for (std::uint64_t at = 0; at < file.size;) {
    const auto extent = TRY(file.next_data(at));
    // Whole pieces, wherever their holes are.
    at = std::max(at, extent.start / checksum_piece * checksum_piece);
    for (; at < extent.end; at += checksum_piece) {
      const MutableBytes piece =
          buffer.first(std::min<std::uint64_t>(file.size - at, checksum_piece));
      TRY(file.read(at, piece));
      if (is_zero(piece)) continue;
      sums.resize(sums.size() + 2 * sizeof(std::uint64_t));
      std::byte* const entry = sums.data() + sums.size() - 2 * sizeof(std::uint64_t);
      store_le(entry, at);
      store_le(entry + sizeof(std::uint64_t), checksum64(piece));
    }
    if (extent.start == file.size) break;
  }
  TRY(file.check_size());
  return checksum64(sums);
}

}  // namespace berth::memory
