#include "disk/layout.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/checksum.h"

namespace berth::disk {
namespace {

constexpr std::uint64_t superblock_magic = 0x0050414d48545242;  // "BRTHMAP\0"
constexpr std::uint32_t page_magic = 0x47504d42;                // "BMPG"
constexpr std::uint32_t intent_magic = 0x544e4942;              // "BINT"

// Every structure keeps its checksum in the eight bytes at this offset; they count as zero in it.
constexpr std::size_t checksum_offset = 8;

std::uint64_t checksum_of(MutableBytes structure) {
  const auto stored = load_le<std::uint64_t>(structure.data() + checksum_offset);
  store_le<std::uint64_t>(structure.data() + checksum_offset, 0);
  const std::uint64_t sum = checksum64(structure);
  store_le<std::uint64_t>(structure.data() + checksum_offset, stored);
  return sum;
}

void seal(MutableBytes structure) {
  store_le<std::uint64_t>(structure.data() + checksum_offset, checksum_of(structure));
}

bool is_sealed(Bytes structure) {
  // The checksum is of the structure with a zero in its place: hash the three parts' copy.
  std::vector<std::byte> copy(structure.begin(), structure.end());
  return load_le<std::uint64_t>(copy.data() + checksum_offset) == checksum_of(copy);
}

}  // namespace

// magic u64, checksum u64, version u32, block size u32, volume id 16, created u64, then the layout.
void encode_superblock(const Superblock& superblock, MutableBytes sector) {
  std::memset(sector.data(), 0, sector.size());
  Writer out(sector);
  out.le<std::uint64_t>(superblock_magic);
  out.le<std::uint64_t>(0);
  out.le<std::uint32_t>(map_format_version);
  out.le<std::uint32_t>(superblock.block_size);
  out.raw(superblock.volume.bytes);
  out.le<std::uint64_t>(static_cast<std::uint64_t>(superblock.created_ms));
  out.le<std::uint64_t>(intent_ring_offset);
  out.le<std::uint64_t>(intent_slot_size);
  out.le<std::uint64_t>(intent_slot_count);
  out.le<std::uint64_t>(journal_offset_a);
  out.le<std::uint64_t>(journal_offset_b);
  out.le<std::uint64_t>(journal_area_size);
  out.le<std::uint64_t>(pages_offset);
  CHECK(out.ok());
  seal(sector);
}

Result<Superblock> decode_superblock(Bytes sector) {
  Reader in(sector);
  if (in.le<std::uint64_t>() != superblock_magic) {
    return failure(ErrorKind::corrupt, "this is not a block map (no magic number)");
  }
  in.le<std::uint64_t>();
  const auto version = in.le<std::uint32_t>();
  Superblock superblock;
  superblock.block_size = in.le<std::uint32_t>();
  const Bytes id = in.raw(16);
  superblock.created_ms = static_cast<std::int64_t>(in.le<std::uint64_t>());
  const std::array<std::uint64_t, 7> layout{in.le<std::uint64_t>(), in.le<std::uint64_t>(),
                                            in.le<std::uint64_t>(), in.le<std::uint64_t>(),
                                            in.le<std::uint64_t>(), in.le<std::uint64_t>(),
                                            in.le<std::uint64_t>()};
  if (!in.ok() || !is_sealed(sector)) {
    return failure(ErrorKind::corrupt, "the block map's superblock has a bad checksum");
  }
  if (version != map_format_version) {
    return failure(ErrorKind::unsupported,
                   fmt::format("the block map has format {}, this program knows {}", version,
                               map_format_version));
  }
  std::memcpy(superblock.volume.bytes.data(), id.data(), id.size());
  const std::array<std::uint64_t, 7> known{intent_ring_offset, intent_slot_size, intent_slot_count,
                                           journal_offset_a,   journal_offset_b, journal_area_size,
                                           pages_offset};
  if (layout != known || superblock.block_size < block_size_min ||
      superblock.block_size > block_size_max || !std::has_single_bit(superblock.block_size)) {
    return failure(ErrorKind::unsupported,
                   "the block map has a layout that this program does not know");
  }
  return superblock;
}

// magic u32, pad u32, checksum u64, volume id 16, page u64, sequence u64, pad to 64, words.
void encode_page(const Id128& volume, PageHeader header, std::span<const MapWord> words,
                 MutableBytes sector) {
  CHECK(sector.size() == page_size && words.size() <= words_per_page);
  std::memset(sector.data(), 0, page_size);
  Writer out(sector);
  out.le<std::uint32_t>(page_magic);
  out.le<std::uint32_t>(0);
  out.le<std::uint64_t>(0);
  out.raw(volume.bytes);
  out.le<std::uint64_t>(header.page);
  out.le<std::uint64_t>(header.sequence);
  static_assert(std::endian::native == std::endian::little,
                "words are copied as they lie in memory");
  std::memcpy(sector.data() + page_header_size, words.data(), words.size_bytes());
  seal(sector);
}

std::optional<PageHeader> decode_page(const Id128& volume, std::uint64_t page, Bytes sector,
                                      std::span<MapWord> words) {
  if (sector.size() < page_size || words.size() < words_per_page) return std::nullopt;
  Reader in(sector);
  if (in.le<std::uint32_t>() != page_magic) return std::nullopt;
  in.le<std::uint32_t>();
  in.le<std::uint64_t>();
  const Bytes id = in.raw(16);
  PageHeader header;
  header.page = in.le<std::uint64_t>();
  header.sequence = in.le<std::uint64_t>();
  if (std::memcmp(id.data(), volume.bytes.data(), id.size()) != 0 || header.page != page ||
      header.sequence == 0 || !is_sealed(sector.first(page_size))) {
    return std::nullopt;
  }
  std::memcpy(words.data(), sector.data() + page_header_size, words_per_page * sizeof(MapWord));
  const auto is_state = [](MapWord word) { return word.state() <= BlockState::zero; };
  if (!std::ranges::all_of(words.first(words_per_page), is_state)) return std::nullopt;
  return header;
}

std::size_t intent_record_size(std::size_t regions) {
  return round_up(intent_header_size + regions * sizeof(HotRegion), sector_size);
}

// magic u32, region count u32, checksum u64, volume id 16, sequence u64, epoch u32, pad to 64,
// regions. The checksum covers the header and the regions, not the padding of the last sector.
void encode_intents(const Id128& volume, const IntentRecord& record, MutableBytes into) {
  CHECK(record.regions.size() <= intent_regions_max &&
        into.size() >= intent_record_size(record.regions.size()));
  std::memset(into.data(), 0, into.size());
  Writer out(into);
  out.le<std::uint32_t>(intent_magic);
  out.le<std::uint32_t>(static_cast<std::uint32_t>(record.regions.size()));
  out.le<std::uint64_t>(0);
  out.raw(volume.bytes);
  out.le<std::uint64_t>(record.sequence);
  out.le<std::uint32_t>(record.epoch);
  Writer body(into.subspan(intent_header_size));
  for (const HotRegion& region : record.regions) {
    body.le<std::uint32_t>(region.region);
    body.le<std::uint32_t>(region.epoch);
  }
  CHECK(out.ok() && body.ok());
  seal(into.first(intent_header_size + body.position()));
}

std::optional<IntentRecord> decode_intents(const Id128& volume, Bytes slot) {
  Reader in(slot);
  if (in.le<std::uint32_t>() != intent_magic) return std::nullopt;
  const auto count = in.le<std::uint32_t>();
  in.le<std::uint64_t>();
  const Bytes id = in.raw(16);
  IntentRecord record;
  record.sequence = in.le<std::uint64_t>();
  record.epoch = in.le<std::uint32_t>();
  if (!in.ok() || count > intent_regions_max || record.epoch > epoch_max ||
      std::memcmp(id.data(), volume.bytes.data(), id.size()) != 0) {
    return std::nullopt;
  }
  const std::size_t length = intent_header_size + count * sizeof(HotRegion);
  if (slot.size() < length || !is_sealed(slot.first(length))) return std::nullopt;
  Reader body(slot.subspan(intent_header_size));
  record.regions.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto region = body.le<std::uint32_t>();
    const auto epoch = body.le<std::uint32_t>();
    if (epoch > record.epoch) return std::nullopt;
    record.regions.push_back({region, epoch});
  }
  return record;
}

void IntentRing::add(const Id128& volume, Bytes slot) {
  auto record = decode_intents(volume, slot);
  // A record that lies elsewhere than it should is none: nobody wrote it there.
  if (record && record->sequence % intent_slot_count != slots_.size()) record.reset();
  slots_.push_back(record ? Slot::whole : is_zero(slot) ? Slot::zeros : Slot::other);
  if (record && record->sequence > newest_sequence()) newest_ = std::move(record);
}

bool IntentRing::may_lack_newer(std::uint64_t known) const {
  const std::uint64_t newest = newest_sequence();
  if (newest < known) return true;
  for (std::uint64_t age = 0; age + 1 < intent_slot_count; ++age) {
    // Which record the slot has, if all is as it should be; before the first ones, zeros.
    const bool written = newest > age;
    const Slot slot = slots_[(newest + intent_slot_count - age) % intent_slot_count];
    if (slot == Slot::other || (slot == Slot::zeros && written)) return true;
  }
  return false;
}

}  // namespace berth::disk
