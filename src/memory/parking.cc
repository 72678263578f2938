#include "memory/parking.h"

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/aligned_buffer.h"
#include "base/units.h"
#include "memory/image_output.h"
#include "memory/page_file.h"
#include "memory/preload/channel_format.h"

namespace berth::memory {
namespace {

// What is read and looked at in one piece: never larger than a granule.
constexpr std::size_t unit = channel::granule_min;
static_assert(unit <= ImageOutput::buffer_size && PageFile::trailer_size <= unit);

/// Gives space of the memory object back.
Result<void> punch(const MemoryFile& object, const std::vector<PageRange>& ranges) {
  for (const PageRange& range : ranges) {
    if (::fallocate(object.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(range.offset), static_cast<off_t>(range.length)) != 0)
      return errno_failure(errno, fmt::format("cannot take memory out of '{}'", object.path));
  }
  return {};
}

/// What is not mapped from the memory object.
std::vector<PageRange> elsewhere(const GuestMemory& memory) {
  std::vector<PageRange> ranges;
  for (const GuestMemory::Piece& piece : memory.pieces())
    if (!piece.is_shared) ranges.push_back(piece.range);
  return merged(std::move(ranges));
}

/// What is mapped from page files.
std::vector<PageRange> in_page_files(const GuestMemory& memory) {
  std::vector<PageRange> ranges;
  for (const GuestMemory::Piece& piece : memory.pieces())
    if (!memory.is_of_its_file(piece)) ranges.push_back(piece.range);
  return merged(std::move(ranges));
}

/// No more than the first `most` bytes of them.
std::vector<PageRange> first_of(const std::vector<PageRange>& ranges, std::uint64_t most) {
  std::vector<PageRange> first;
  for (const PageRange& range : ranges) {
    if (most == 0) break;
    first.push_back({.offset = range.offset, .length = std::min(range.length, most)});
    most -= first.back().length;
  }
  return first;
}

/// Calls `write(start, end)` for each run of pages that are not zero.
template <typename Write>
Result<void> write_runs(Bytes bytes, Write write) {
  const auto is_page_zero = [&](std::size_t at) { return is_zero(bytes.subspan(at, page_size)); };
  for (std::size_t start = 0; start < bytes.size(); start += page_size) {
    if (is_page_zero(start)) continue;
    std::size_t end = start + page_size;
    while (end < bytes.size() && !is_page_zero(end)) end += page_size;
    TRY(write(start, end));
    start = end;
  }
  return {};
}

class Parking {
 public:
  Parking(GuestMemory& memory, std::string path)
      : memory_(memory),
        path_(std::move(path)),
        held_(memory.size()),
        same_(memory.size()),
        template_(unit),
        scratch_(unit) {}

  Result<ParkReport> run() {
    TRY(write_file({}));
    if (auto mapped = map(); !mapped) {
      remove_if_unused(mapped.error());
      return failure(std::move(mapped).error());
    }
    report_.after = TRY(memory_use(memory_));
    return report_;
  }

  /// Nothing is mapped.
  Result<SaveReport> save() {
    TRY(write_file(in_page_files(memory_)));
    return SaveReport{.before = report_.before, .written = report_.written};
  }

 private:
  Result<void> write_file(const std::vector<PageRange>& also) {
    report_.before = TRY(memory_use(memory_));
    output_ = TRY(ImageOutput::create(path_, memory_.size() + PageFile::trailer_size));
    auto written = write(also);
    output_.reset();
    if (!written) ::unlink(path_.c_str());
    return written;
  }

  Result<void> write(const std::vector<PageRange>& also) {
    GranuleSet candidates(memory_.size());
    for (const PageRange& range : also) candidates.add(range);
    for (const PageRange& range : TRY(memory_.private_pages())) candidates.add(range);
    for (const PageRange& range : TRY(memory_.object_pages())) candidates.add(range);
    for (const PageRange& run : candidates.ranges()) {
      for (std::uint64_t at = run.offset; at < run.offset + run.length; at += held_.granule()) {
        const PageRange granule{.offset = at,
                                .length = std::min(held_.granule(), memory_.size() - at)};
        TRY(write_granule(granule));
      }
    }
    // The trailer vouches for what is before it.
    TRY(output_->sync());
    const Bytes trailer = PageFile::encode_trailer(TRY(output_->buffer()), memory_.size(), held_);
    TRY(output_->write(memory_.size(), trailer));
    return output_->sync();
  }

  Result<void> write_granule(PageRange granule) {
    if (granule.length > unit) {
      if (TRY(is_as_its_source(granule))) {
        same_.add(granule);
        return {};
      }
      held_.add(granule);
    }
    for (std::uint64_t at = granule.offset; at < granule.offset + granule.length; at += unit) {
      const MutableBytes bytes =
          TRY(output_->buffer())
              .first(std::min<std::uint64_t>(unit, granule.offset + granule.length - at));
      TRY(memory_.read(at, bytes));
      if (granule.length <= unit) {
        const bool is_same = TRY(is_source(at, bytes));
        (is_same ? same_ : held_).add(granule);
        if (is_same) return {};
      }
      TRY(write_runs(bytes, [&](std::size_t start, std::size_t end) {
        report_.written += end - start;
        return output_->write(at + start, bytes.subspan(start, end - start));
      }));
    }
    return {};
  }

  Result<bool> is_as_its_source(PageRange granule) {
    for (std::uint64_t at = granule.offset; at < granule.offset + granule.length; at += unit) {
      const MutableBytes bytes =
          scratch_.first(std::min<std::uint64_t>(unit, granule.offset + granule.length - at));
      TRY(memory_.read(at, bytes));
      if (!TRY(is_source(at, bytes))) return false;
    }
    return true;
  }

  /// Whether that is what would be there if nothing of it were private.
  Result<bool> is_source(std::uint64_t at, Bytes bytes) {
    if (!memory_.is_clone()) return is_zero(bytes);
    const MutableBytes source = template_.first(bytes.size());
    TRY(memory_.file().read(at, source));
    return std::ranges::equal(bytes, source);
  }

  Result<void> map() {
    auto file = TRY(PageFile::open(path_));
    const auto held = held_.ranges();
    report_.mapped = total_length(held);
    TRY(memory_.map(file.fd(), held));
    const auto same = same_.ranges();
    report_.back_to_source = total_length(same);
    TRY(memory_.map(memory_.file().fd, same));
    TRY(memory_.look());
    if (!memory_.is_clone()) {
      // Also what somebody has left there who died before.
      TRY(punch(memory_.file(), elsewhere(memory_)));
      TRY(punch(memory_.file(), same));
    }
    // The pages of older page files are in the page table: those of this one are not.
    drop_page_files(memory_);
    file.drop_cache();
    return {};
  }

  void remove_if_unused(const Error& error) {
    if (error.kind() == ErrorKind::timed_out) return;
    const auto looked = memory_.look();
    const bool has_ended = !looked && looked.error().kind() == ErrorKind::disconnected;
    if (!looked && !has_ended) return;
    if (const auto mapped = is_mapped(memory_, path_); has_ended || (mapped && !*mapped))
      ::unlink(path_.c_str());
  }

  GuestMemory& memory_;
  const std::string path_;
  std::unique_ptr<ImageOutput> output_;
  GranuleSet held_;
  GranuleSet same_;
  AlignedBuffer template_;
  AlignedBuffer scratch_;
  ParkReport report_;
};

Result<void> copy_back(const GuestMemory& memory, const std::vector<PageRange>& ranges) {
  const AlignedBuffer buffer(unit);
  for (const PageRange& range : ranges) {
    for (std::uint64_t at = range.offset; at < range.offset + range.length; at += unit) {
      const MutableBytes bytes =
          buffer.first(std::min<std::uint64_t>(unit, range.offset + range.length - at));
      TRY(memory.read(at, bytes));
      TRY(write_runs(bytes, [&](std::size_t start, std::size_t end) {
        return memory.file().write(at + start, bytes.subspan(start, end - start));
      }));
    }
  }
  return {};
}

Result<struct stat> status_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at the page file '{}'", path));
  return status;
}

/// Whether that is mapped from this file.
bool is_of(const GuestMemory::Piece& piece, const struct stat& file) {
  return piece.device == file.st_dev && piece.inode == file.st_ino;
}

/// What the machine has elsewhere by now is not read ahead here.
Result<void> keep_first_of(const std::string& path, const GranuleSet& mapped) {
  auto file = TRY(PageFile::open(path));
  GranuleSet first = file.working_set();
  first.keep_only(mapped);
  if (first != file.working_set()) TRY(file.set_working_set(first));
  return {};
}

}  // namespace

Result<ParkReport> park(GuestMemory& memory, const std::string& path) {
  TRY(memory.look());
  return Parking(memory, path).run();
}

Result<SaveReport> save(GuestMemory& memory, const std::string& path) {
  TRY(memory.look());
  return Parking(memory, path).save();
}

Result<bool> is_saved_in(GuestMemory& memory, const std::string& path) {
  const struct stat status = TRY(status_of(path));
  TRY(memory.look());
  GranuleSet mapped(memory.size());
  for (const GuestMemory::Piece& piece : memory.pieces()) {
    if (memory.is_of_its_file(piece)) continue;
    if (!is_of(piece, status)) return false;
    mapped.add(piece.range);
  }
  if (!TRY(memory.private_pages()).empty() || !TRY(memory.object_pages()).empty()) return false;
  const auto file = TRY(PageFile::open(path));
  return file.memory_size() == memory.size() && file.held() == mapped;
}

Result<void> map_saved(GuestMemory& memory, const std::string& path) {
  const auto file = TRY(PageFile::open(path));
  if (file.memory_size() != memory.size()) {
    return failure(ErrorKind::corrupt,
                   fmt::format("'{}' is of a machine with another memory", path));
  }
  return memory.map(file.fd(), file.held().ranges());
}

Result<bool> restore(GuestMemory& memory, std::uint64_t most) {
  if (memory.is_clone()) {
    return failure(ErrorKind::precondition,
                   "a clone has no memory object that its memory could go back to");
  }
  TRY(memory.look());
  const auto all = elsewhere(memory);
  const auto ranges = first_of(all, most);
  // Zeros are not written: nothing may be there of an attempt that failed.
  TRY(punch(memory.file(), ranges));
  if (auto copied = copy_back(memory, ranges); !copied) {
    TRY(punch(memory.file(), ranges));
    return failure(std::move(copied).error());
  }
  TRY(memory.map(memory.file().fd, ranges));
  TRY(memory.look());
  return total_length(ranges) == total_length(all);
}

Result<void> read_in(GuestMemory& memory, std::uint64_t most) {
  TRY(memory.look());
  const AlignedBuffer buffer(unit);
  for (const PageRange& range : first_of(elsewhere(memory), most)) {
    for (std::uint64_t at = range.offset; at < range.offset + range.length; at += unit) {
      const std::uint64_t left = range.offset + range.length - at;
      TRY(memory.read(at, buffer.first(std::min<std::uint64_t>(unit, left))));
    }
  }
  return {};
}

Result<std::uint64_t> record_working_set(GuestMemory& memory, const std::string& path) {
  auto file = TRY(PageFile::open(path));
  const struct stat status = TRY(status_of(path));
  if (file.memory_size() != memory.size()) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no page file of this machine", path));
  }
  TRY(memory.look());
  GranuleSet found(memory.size());
  for (const GuestMemory::Piece& piece : memory.pieces()) {
    if (!is_of(piece, status)) continue;
    for (const PageRange& range : TRY(memory.present_pages(piece))) found.add(range);
  }
  const std::uint64_t length = total_length(found.ranges());
  GranuleSet all = found;
  all.add(file.working_set());
  TRY(file.set_working_set(total_length(all.ranges()) <= working_set_max ? all : found));
  return length;
}

Result<bool> release_unmapped(GuestMemory& memory, const std::string& path) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return errno_failure(errno, fmt::format("cannot open the page file '{}'", path));
  const struct stat status = TRY(status_of(path));
  TRY(memory.look());
  GranuleSet mapped(memory.size());
  std::vector<PageRange> unmapped;
  std::uint64_t mapped_to = 0;
  bool is_needed = false;
  for (const GuestMemory::Piece& piece : memory.pieces()) {
    if (!is_of(piece, status)) continue;
    is_needed = true;
    if (piece.range.offset > mapped_to)
      unmapped.push_back({.offset = mapped_to, .length = piece.range.offset - mapped_to});
    mapped.add(piece.range);
    mapped_to = piece.range.offset + piece.range.length;
  }
  if (!is_needed) {
    ::unlink(path.c_str());
    return false;
  }
  if (mapped_to < memory.size())
    unmapped.push_back({.offset = mapped_to, .length = memory.size() - mapped_to});
  for (const PageRange& range : unmapped) {
    if (::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(range.offset), static_cast<off_t>(range.length)) != 0) {
      if (errno == EOPNOTSUPP) break;  // it takes its space until it goes
      return errno_failure(errno, fmt::format("cannot give back what '{}' holds", path));
    }
  }
  TRY(keep_first_of(path, mapped));
  return true;
}

Result<bool> is_mapped(GuestMemory& memory, const std::string& path) {
  const struct stat status = TRY(status_of(path));
  TRY(memory.look());
  return std::ranges::any_of(memory.pieces(),
                             [&](const GuestMemory::Piece& piece) { return is_of(piece, status); });
}

}  // namespace berth::memory
