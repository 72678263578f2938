#include "memory/page_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/checksum.h"
#include "base/read_ahead.h"
#include "memory/memory_file.h"
#include "memory/preload/channel_format.h"

namespace berth::memory {
namespace {

// docs/formats/page-file.md.
constexpr std::uint32_t format_version = 1;
constexpr std::string_view head_magic = "BRTHPGF";
constexpr std::string_view working_set_magic = "BRTHPGW";
constexpr std::size_t magic_size = 8;  // with a zero
constexpr std::size_t record_size = 4096;
constexpr std::size_t checksum_at = 8;
constexpr std::size_t granules_at = 2048;
static_assert(granules_at + GranuleSet::encoded_size == record_size);
static_assert(PageFile::trailer_size == 2 * record_size);

/// With the field itself zero.
std::uint64_t checksum_of(Bytes record) {
  std::array<std::byte, record_size> copy;
  std::ranges::copy(record, copy.begin());
  store_le<std::uint64_t>(copy.data() + checksum_at, 0);
  return checksum64(copy);
}

void encode_record(MutableBytes record, std::string_view magic, std::uint64_t memory_size,
                   const GranuleSet& granules) {
  std::ranges::fill(record, std::byte{0});
  Writer writer(record);
  writer.raw(as_bytes(magic));
  writer.le<std::uint8_t>(0);
  writer.le<std::uint64_t>(0);
  writer.le<std::uint32_t>(format_version);
  writer.le<std::uint32_t>(0);
  writer.le<std::uint64_t>(memory_size);
  writer.le<std::uint64_t>(granules.granule());
  writer.le<std::uint64_t>(granules.count());
  granules.encode(record.subspan(granules_at));
  store_le(record.data() + checksum_at, checksum_of(record));
}

enum class Record : std::uint8_t { good, bad, of_another_version };

Record decode_record(Bytes record, std::string_view magic, std::uint64_t memory_size,
                     GranuleSet& granules) {
  Reader reader(record);
  const Bytes name = reader.raw(magic_size);
  const auto checksum = reader.le<std::uint64_t>();
  const auto version = reader.le<std::uint32_t>();
  (void)reader.le<std::uint32_t>();
  if (as_text(name.first(magic.size())) != magic || checksum != checksum_of(record))
    return Record::bad;
  if (version != format_version) return Record::of_another_version;
  if (reader.le<std::uint64_t>() != memory_size ||
      reader.le<std::uint64_t>() != granules.granule() ||
      !granules.decode(record.subspan(granules_at)) ||
      reader.le<std::uint64_t>() != granules.count())
    return Record::bad;
  return Record::good;
}

}  // namespace

std::uint64_t granule_size(std::uint64_t memory_size) {
  return std::max(channel::granule_min,
                  std::bit_ceil((memory_size + memory_mappings_max - 1) / memory_mappings_max));
}

GranuleSet::GranuleSet(std::uint64_t memory_size)
    : memory_size_(memory_size),
      granule_(granule_size(memory_size)),
      granules_(divide(memory_size)) {}

void GranuleSet::add(PageRange range) {
  const std::uint64_t end = std::min(divide(range.offset + range.length), granules());
  for (std::uint64_t i = range.offset / granule_; i < end; ++i) granules_[i] = true;
}

bool GranuleSet::has(std::uint64_t granule) const {
  return granule < granules_.size() && granules_[granule];
}

std::uint64_t GranuleSet::count() const {
  return static_cast<std::uint64_t>(std::ranges::count(granules_, true));
}

bool GranuleSet::includes(const GranuleSet& other) const {
  for (std::uint64_t i = 0; i < other.granules(); ++i)
    if (other.has(i) && !has(i)) return false;
  return true;
}

void GranuleSet::add(const GranuleSet& others) {
  for (std::uint64_t i = 0; i < granules(); ++i)
    if (others.has(i)) granules_[i] = true;
}

void GranuleSet::keep_only(const GranuleSet& others) {
  for (std::uint64_t i = 0; i < granules(); ++i)
    if (!others.has(i)) granules_[i] = false;
}

std::vector<PageRange> GranuleSet::ranges() const {
  std::vector<PageRange> found;
  for (std::uint64_t i = 0; i < granules(); ++i) {
    if (!granules_[i]) continue;
    const std::uint64_t start = i * granule_;
    const std::uint64_t length = std::min(granule_, memory_size_ - start);
    if (!found.empty() && found.back().offset + found.back().length == start) {
      found.back().length += length;
    } else {
      found.push_back({.offset = start, .length = length});
    }
  }
  return found;
}

void GranuleSet::encode(MutableBytes into) const {
  for (std::uint64_t i = 0; i < granules(); ++i)
    if (granules_[i]) into[i / 8] |= std::byte{1} << (i % 8);
}

bool GranuleSet::decode(Bytes from) {
  for (std::uint64_t i = 0; i < from.size() * 8; ++i) {
    const bool is_there = (from[i / 8] >> (i % 8) & std::byte{1}) != std::byte{0};
    if (i < granules_.size()) {
      granules_[i] = is_there;
    } else if (is_there) {
      return false;
    }
  }
  return true;
}

PageFile::PageFile(std::string path, Fd fd, std::uint64_t memory_size)
    : path_(std::move(path)),
      fd_(std::move(fd)),
      memory_size_(memory_size),
      held_(memory_size),
      working_set_(memory_size) {}

Bytes PageFile::encode_trailer(MutableBytes into, std::uint64_t memory_size,
                               const GranuleSet& held) {
  const MutableBytes trailer = into.first(trailer_size);
  encode_record(trailer.first(record_size), head_magic, memory_size, held);
  encode_record(trailer.subspan(record_size), working_set_magic, memory_size,
                GranuleSet(memory_size));
  return trailer;
}

Result<PageFile> PageFile::open(const std::string& path) {
  MemoryFile file = TRY(MemoryFile::open(path, MemoryFile::Access::read));
  if (file.size <= trailer_size) {
    return failure(ErrorKind::corrupt, fmt::format("'{}' is no page file: too short", path));
  }
  const std::uint64_t memory_size = file.size - trailer_size;
  PageFile opened(path, std::move(file.fd), memory_size);
  TRY(opened.read_trailer());
  return opened;
}

Result<void> PageFile::read_trailer() {
  const MemoryFile file{
      .path = path_, .fd = Fd(::dup(fd_.get())), .size = memory_size_ + trailer_size};
  std::array<std::byte, trailer_size> trailer;
  TRY(file.read(memory_size_, trailer));
  const Bytes records = trailer;
  switch (decode_record(records.first(record_size), head_magic, memory_size_, held_)) {
    case Record::good: break;
    case Record::bad:
      return failure(ErrorKind::corrupt,
                     fmt::format("'{}' is no page file, or was not written whole", path_));
    case Record::of_another_version:
      return failure(ErrorKind::unsupported,
                     fmt::format("'{}' is a page file of another version of Berth", path_));
  }
  // What is to be read first is nothing that could make a memory wrong.
  GranuleSet first(memory_size_);
  if (decode_record(records.subspan(record_size), working_set_magic, memory_size_, first) ==
          Record::good &&
      held_.includes(first))
    working_set_ = std::move(first);
  return {};
}

Result<void> PageFile::set_working_set(const GranuleSet& granules) {
  GranuleSet first = granules;
  first.keep_only(held_);
  std::array<std::byte, record_size> record;
  encode_record(record, working_set_magic, memory_size_, first);
  const auto file = TRY(MemoryFile::open(path_, MemoryFile::Access::write));
  TRY(file.write(memory_size_ + record_size, record));
  working_set_ = std::move(first);
  return {};
}

Result<std::uint64_t> PageFile::prefetch() {
  const auto ranges = working_set_.ranges();
  for (const PageRange& range : ranges) {
    if (auto asked = read_ahead(fd_, range.offset, range.length); !asked)
      return failure(std::move(asked).error().with_context(fmt::format("'{}'", path_)));
  }
  return total_length(ranges);
}

void PageFile::drop_cache() { (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED); }

}  // namespace berth::memory
