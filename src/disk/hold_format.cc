#include "disk/hold_format.h"

#include <cstring>
#include <vector>

#include "base/checksum.h"
#include "disk/types.h"

namespace berth::disk {
namespace {

constexpr std::uint64_t header_magic = 0x00444c4848545242;  // "BRTHHLD\0"
constexpr std::uint32_t entry_magic = 0x4e454842;           // "BHEN"
constexpr std::uint32_t hold_format_version = 1;
constexpr std::size_t header_length = 56;  // bytes that the header's checksum covers
constexpr std::size_t entry_length = 72;   // likewise for an entry
constexpr std::size_t checksum_offset = 8;

std::uint64_t checksum_without_itself(Bytes structure) {
  std::array<std::byte, entry_length> copy{};
  std::memcpy(copy.data(), structure.data(), structure.size());
  store_le<std::uint64_t>(copy.data() + checksum_offset, 0);
  return checksum64(Bytes(copy).first(structure.size()));
}

}  // namespace

// magic u64, checksum u64, volume id 16, layer u64, version u32, block size u32, pad to 56.
void encode_hold_header(const HoldHeader& header, MutableBytes sector) {
  std::memset(sector.data(), 0, sector.size());
  Writer out(sector);
  out.le<std::uint64_t>(header_magic);
  out.le<std::uint64_t>(0);
  out.raw(header.volume.bytes);
  out.le<std::uint64_t>(header.layer);
  out.le<std::uint32_t>(hold_format_version);
  out.le<std::uint32_t>(header.block_size);
  store_le<std::uint64_t>(sector.data() + checksum_offset,
                          checksum_without_itself(sector.first(header_length)));
}

Result<HoldHeader> decode_hold_header(Bytes sector) {
  Reader in(sector);
  if (in.le<std::uint64_t>() != header_magic)
    return failure(ErrorKind::corrupt, "this is not a hold (no magic number)");
  const auto stored = in.le<std::uint64_t>();
  HoldHeader header;
  const Bytes id = in.raw(16);
  header.layer = in.le<std::uint64_t>();
  const auto version = in.le<std::uint32_t>();
  header.block_size = in.le<std::uint32_t>();
  if (!in.ok() || sector.size() < header_length ||
      checksum_without_itself(sector.first(header_length)) != stored) {
    return failure(ErrorKind::corrupt, "the hold's header has a bad checksum");
  }
  std::memcpy(header.volume.bytes.data(), id.data(), id.size());
  if (version != hold_format_version)
    return failure(ErrorKind::unsupported, "the hold has a format unknown here");
  return header;
}

// magic u32, kind u32, checksum u64, volume id 16, layer u64, slot u64, block u64, word u32, pad
// u32, checksum of the data u64.
void encode_hold_entry(const Id128& volume, LayerId layer, std::uint64_t slot,
                       const HoldEntry& entry, MutableBytes sector) {
  std::memset(sector.data(), 0, sector.size());
  Writer out(sector);
  out.le<std::uint32_t>(entry_magic);
  out.le<std::uint32_t>(static_cast<std::uint32_t>(entry.kind));
  out.le<std::uint64_t>(0);
  out.raw(volume.bytes);
  out.le<std::uint64_t>(layer);
  out.le<std::uint64_t>(slot);
  out.le<std::uint64_t>(entry.block);
  out.le<std::uint32_t>(entry.word.raw);
  out.le<std::uint32_t>(0);
  out.le<std::uint64_t>(entry.data_checksum);
  CHECK(out.ok() && out.position() == entry_length);
  store_le<std::uint64_t>(sector.data() + checksum_offset,
                          checksum_without_itself(sector.first(entry_length)));
}

std::optional<HoldEntry> decode_hold_entry(const Id128& volume, LayerId layer, std::uint64_t slot,
                                           Bytes sector) {
  Reader in(sector);
  if (in.le<std::uint32_t>() != entry_magic) return std::nullopt;
  const auto kind = in.le<std::uint32_t>();
  const auto stored = in.le<std::uint64_t>();
  const Bytes id = in.raw(16);
  const auto stored_layer = in.le<std::uint64_t>();
  const auto stored_slot = in.le<std::uint64_t>();
  HoldEntry entry;
  entry.block = in.le<std::uint64_t>();
  entry.word.raw = in.le<std::uint32_t>();
  in.le<std::uint32_t>();
  entry.data_checksum = in.le<std::uint64_t>();
  if (!in.ok() || kind < 1 || kind > 3 || stored_layer != layer || stored_slot != slot ||
      std::memcmp(id.data(), volume.bytes.data(), id.size()) != 0 ||
      checksum_without_itself(sector.first(entry_length)) != stored) {
    return std::nullopt;
  }
  entry.kind = static_cast<HeldKind>(kind);
  return entry;
}

}  // namespace berth::disk
