// The hold file, byte by byte (docs/formats/hold.md): a header sector, then slots of one header
// sector and one block each. Pure: no I/O; decoders take any bytes.
#pragma once

#include <optional>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "disk/hold_layer.h"

namespace berth::disk {

struct HoldHeader {
  Id128 volume;
  LayerId layer = 0;
  std::uint32_t block_size = 0;  // bytes
};
void encode_hold_header(const HoldHeader& header, MutableBytes sector);
Result<HoldHeader> decode_hold_header(Bytes sector);

struct HoldEntry {
  BlockIndex block = 0;
  MapWord word;
  HeldKind kind = HeldKind::none;
  std::uint64_t data_checksum = 0;  // of the block's bytes; 0 where the kind is not data
};
void encode_hold_entry(const Id128& volume, LayerId layer, std::uint64_t slot,
                       const HoldEntry& entry, MutableBytes sector);
/// nullopt for anything but a whole entry of this layer and slot.
std::optional<HoldEntry> decode_hold_entry(const Id128& volume, LayerId layer, std::uint64_t slot,
                                           Bytes sector);

}  // namespace berth::disk
