// The block map file, byte by byte (docs/formats/block-map.md): where everything lies, and the
// codecs of its superblock, map pages and intent records. Pure: no I/O. Decoders take any bytes and
// answer `corrupt` (or nullopt, where a torn slot is an ordinary sight) instead of trusting them.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "disk/types.h"

namespace berth::disk {

constexpr std::uint32_t map_format_version = 3;

// Offsets in the map file, bytes. Everything is written in units of sector_size.
constexpr std::uint64_t superblock_offset = 0;
constexpr std::uint64_t superblock_copy_offset = 4 * KiB;
constexpr std::uint64_t intent_ring_offset = 64 * KiB;
constexpr std::uint64_t intent_slot_size = 64 * KiB;
constexpr std::uint64_t intent_slot_count = 8;
constexpr std::uint64_t journal_offset_a = 1 * MiB;
constexpr std::uint64_t journal_offset_b = 64 * MiB;
constexpr std::uint64_t journal_area_size = 63 * MiB;
constexpr std::uint64_t pages_offset = 128 * MiB;

// --- Superblock: written once, twice over.
struct Superblock {
  Id128 volume;
  std::uint32_t block_size = 0;  // bytes
  std::int64_t created_ms = 0;   // Unix time

  friend bool operator==(const Superblock&, const Superblock&) = default;
};
void encode_superblock(const Superblock& superblock, MutableBytes sector);
Result<Superblock> decode_superblock(Bytes sector);

// --- Map pages: two slots each, which their versions take in turn. The whole one with the higher
// sequence counts.
constexpr std::size_t page_size = 4096;
constexpr std::size_t page_header_size = 64;
constexpr std::size_t words_per_page = (page_size - page_header_size) / sizeof(MapWord);  // 1008

constexpr std::uint64_t page_of(BlockIndex block) { return block / words_per_page; }
constexpr std::uint64_t page_count_for(std::uint64_t blocks) {
  return divide_up(blocks, words_per_page);
}
constexpr std::uint64_t page_slot_offset(std::uint64_t page, unsigned slot) {
  return pages_offset + (2 * page + slot) * page_size;
}

/// Where the version with this sequence (from 1) lies: a version never overwrites the one before
/// it, and no two can claim the same sequence.
constexpr unsigned page_slot_of(std::uint64_t sequence) { return sequence % 2 == 0 ? 1 : 0; }

struct PageHeader {
  std::uint64_t page = 0;
  std::uint64_t sequence = 0;  // 0: never written
};
void encode_page(const Id128& volume, PageHeader header, std::span<const MapWord> words,
                 MutableBytes sector);
/// The header, and the words into `words` (words_per_page of them); nullopt for any slot that does
/// not hold a whole page of this volume with this number. Which slot it is, the caller compares.
std::optional<PageHeader> decode_page(const Id128& volume, std::uint64_t page, Bytes sector,
                                      std::span<MapWord> words);

// --- Intents: one record is the whole hot set (rule 3).
struct HotRegion {
  std::uint32_t region = 0;  // offset in the volume / region_size
  Epoch epoch = 0;           // the last one in which writes into it were announced
  friend bool operator==(const HotRegion&, const HotRegion&) = default;
};
constexpr std::size_t intent_header_size = 64;
constexpr std::size_t intent_regions_max =
    (intent_slot_size - intent_header_size) / sizeof(HotRegion);

struct IntentRecord {
  std::uint64_t sequence = 0;
  Epoch epoch = 0;  // the highest of the regions'
  std::vector<HotRegion> regions;
};
/// Bytes that the record takes, a multiple of sector_size.
std::size_t intent_record_size(std::size_t regions);
void encode_intents(const Id128& volume, const IntentRecord& record, MutableBytes into);
/// nullopt for a slot that holds no whole record of this volume.
std::optional<IntentRecord> decode_intents(const Id128& volume, Bytes slot);

/// What the slots of the ring say together. Record n lies in slot n mod intent_slot_count, and is
/// begun when record n - 1 is durable.
class IntentRing {
 public:
  /// Every slot, in order, as far as the file has it.
  void add(const Id128& volume, Bytes slot);

  const std::optional<IntentRecord>& newest() const { return newest_; }
  std::uint64_t newest_sequence() const { return newest_ ? newest_->sequence : 0; }
  /// Whether a record newer than newest() may have been whole once, given that record `known` was:
  /// a slot in which one would lie is neither whole nor as it was made. Of the slot after the
  /// newest one that says nothing: it has what a commit left that was cut short.
  bool may_lack_newer(std::uint64_t known) const;

  enum class Slot : std::uint8_t { whole, zeros, other };
  Slot slot(std::uint64_t index) const { return slots_[index]; }

 private:
  std::optional<IntentRecord> newest_;
  std::vector<Slot> slots_;
};

}  // namespace berth::disk
