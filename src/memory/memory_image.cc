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
#include "base/units.h"
#include "memory/memory_file.h"

namespace berth::memory {
namespace {

// Stays in the cache of a core between the read and the write.
constexpr std::size_t piece_max = 256 * KiB;
// What is written goes to the disk in portions of this size while more is copied, so that little is
// left for the end.
constexpr std::uint64_t writeback_portion = 8 * MiB;

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
    const std::size_t wanted = std::min<std::uint64_t>(used_ * page_size + bytes, size_);
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
  MemoryFile image;
  bool finished = false;
  std::uint64_t bytes_written = 0;
  std::vector<bool> in_image;  // pages that were written there; all others are holes
  AlignedBuffer buffer{piece_max};
  Staging staging;

  Result<void> make_image(const std::string& path);
  Result<void> check_ranges(const std::vector<PageRange>& ranges) const;
  Result<void> copy_piece(std::uint64_t offset, std::uint64_t length);
  Result<void> write_pages(std::uint64_t offset, Bytes pages);
  Result<void> write_staged();
};

Result<void> MemoryImageWriter::State::make_image(const std::string& path) {
  image = {.path = path,
           .fd = Fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)),
           .size = memory.size};
  if (!image.fd)
    return errno_failure(errno, fmt::format("cannot make the memory image '{}'", path));
  if (::ftruncate(image.fd.get(), static_cast<off_t>(image.size)) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return errno_failure(error, fmt::format("cannot make the memory image '{}'", path));
  }
  in_image.resize(image.size / page_size);
  return {};
}

Result<void> MemoryImageWriter::State::check_ranges(const std::vector<PageRange>& ranges) const {
  for (const auto& [offset, length] : ranges) {
    if (offset % page_size == 0 && length % page_size == 0 && offset <= memory.size &&
        length <= memory.size - offset)
      continue;
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
                      TRY(image.write(offset + start, pages.subspan(start, end - start)));
                      for (std::uint64_t at = start; at < end; at += page_size)
                        in_image[(offset + at) / page_size] = true;
                      bytes_written += end - start;
                      return {};
                    });
}

Result<void> MemoryImageWriter::State::copy_piece(std::uint64_t offset, std::uint64_t length) {
  const MutableBytes bytes = buffer.first(length);
  TRY(memory.read(offset, bytes));
  return write_pages(offset, bytes);
}

/// In the order of the image, whatever order they were staged in.
Result<void> MemoryImageWriter::State::write_staged() {
  if (staging.is_empty()) return {};
  const std::uint64_t pages = memory.size / page_size;
  for (std::uint64_t page = 0; page < pages;) {
    std::size_t length = 0;
    for (; page + length / page_size < pages && length < piece_max; length += page_size) {
      const std::uint64_t at = page + length / page_size;
      if (!staging.has(at)) break;
      std::ranges::copy(staging.at(at), buffer.first(piece_max).begin() + length);
    }
    TRY(write_pages(page * page_size, buffer.first(length)));
    page += length / page_size + (length < piece_max ? 1 : 0);
  }
  staging.clear();
  return {};
}

MemoryImageWriter::MemoryImageWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}

MemoryImageWriter::~MemoryImageWriter() {
  if (!state_->finished) ::unlink(state_->image.path.c_str());
}

Result<std::unique_ptr<MemoryImageWriter>> MemoryImageWriter::create(const std::string& memory_file,
                                                                     const std::string& path) {
  auto state = std::make_unique<State>();
  state->memory = TRY(MemoryFile::open(memory_file, MemoryFile::Access::read));
  TRY(state->make_image(path));
  return std::unique_ptr<MemoryImageWriter>(new MemoryImageWriter(std::move(state)));
}

Result<void> MemoryImageWriter::copy_all(const std::atomic<bool>& stop,
                                         const std::function<void(std::uint64_t)>& report) {
  State& state = *state_;
  std::uint64_t sent = 0;  // the disk has been told to begin with what lies before
  const auto send = [&](std::uint64_t until) {
    (void)::sync_file_range(state.image.fd.get(), static_cast<off_t>(sent),
                            static_cast<off_t>(until - sent), SYNC_FILE_RANGE_WRITE);
    sent = until;
  };
  for (std::uint64_t at = 0; at < state.memory.size;) {
    const auto extent = TRY(state.memory.next_data(at));
    for (at = extent.start; at < extent.end;) {
      if (stop) return failure(ErrorKind::cancelled, "copying the memory was cancelled");
      const std::uint64_t length = std::min<std::uint64_t>(extent.end - at, piece_max);
      TRY(state.copy_piece(at, length));
      at += length;
      if (at - sent >= writeback_portion) send(at);
      if (report) report(at);
    }
  }
  send(state.memory.size);
  if (report) report(state.memory.size);
  return state.memory.check_size();
}

Result<void> MemoryImageWriter::copy(const std::vector<PageRange>& ranges) {
  TRY(state_->check_ranges(ranges));
  TRY(state_->write_staged());
  for (const auto& [offset, length] : ranges) {
    for (std::uint64_t done = 0; done < length; done += piece_max)
      TRY(state_->copy_piece(offset + done, std::min<std::uint64_t>(length - done, piece_max)));
  }
  return {};
}

Result<void> MemoryImageWriter::sync() {
  const MemoryFile& image = state_->image;
  if (::fdatasync(image.fd.get()) != 0)
    return errno_failure(errno, fmt::format("cannot sync the memory image '{}'", image.path));
  return {};
}

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
  for (const auto& [offset, length] : ranges) {
    for (std::uint64_t done = 0; done < length;) {
      const MutableBytes place =
          state.staging.place((offset + done) / page_size, (length - done) / page_size);
      TRY(state.memory.read(offset + done, place));
      done += place.size();
    }
  }
  return {};
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
  TRY(sync_name(state.image.path));
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

}  // namespace berth::memory
