// Hold files, from any bytes: their decoders, and a layer that is opened on them, read and appended
// to.
//
// Input: a byte with the mode, then
//   0  a header, raw        1  an entry, raw       (a byte before them says whether the checksum is
//   made right) 2  a file: for each slot a control byte (0: left out; bit 0: the checksum of the
//   entry is made right; bit 1: that of
//      the data) and the entry's fields; then the layer is used

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "disk/fuzz_support.h"
#include "disk/hold_format.h"
#include "disk/hold_layer.h"

namespace berth::disk {
namespace {

constexpr std::uint32_t block_size = 4 * KiB;
constexpr std::uint64_t block_count = 3000;
constexpr LayerId layer_id = 5;
constexpr std::size_t header_length = 56;
constexpr std::size_t entry_length = 72;
constexpr std::size_t slots_max = 600;

const Id128& volume_id() {
  static const Id128 id = MUST(Id128::parse("00112233-4455-4677-8899-aabbccddeeff"));
  return id;
}

void try_header(FuzzInput in) {
  const bool sealed = in.number<std::uint8_t>() != 0;
  const Bytes rest = in.rest();
  std::vector<std::byte> sector(rest.begin(), rest.end());
  if (sealed && sector.size() >= header_length) seal(MutableBytes(sector).first(header_length));
  const auto header = decode_hold_header(sector);
  if (!header) return;
  std::vector<std::byte> again(sector_size);
  encode_hold_header(*header, again);
  CHECK(MUST(decode_hold_header(again)).layer == header->layer);
}

void try_entry(FuzzInput in) {
  const bool sealed = in.number<std::uint8_t>() != 0;
  const Bytes rest = in.rest();
  std::vector<std::byte> sector(rest.begin(), rest.end());
  if (sealed && sector.size() >= entry_length) seal(MutableBytes(sector).first(entry_length));
  const auto entry = decode_hold_entry(volume_id(), layer_id, 9, sector);
  if (!entry) return;
  std::vector<std::byte> again(sector_size);
  encode_hold_entry(volume_id(), layer_id, 9, *entry, again);
  CHECK(decode_hold_entry(volume_id(), layer_id, 9, again)->block == entry->block);
}

MemoryContent make_file(FuzzInput& in) {
  MemoryContent file;
  std::vector<std::byte> sector(sector_size);
  encode_hold_header({.volume = volume_id(), .layer = layer_id, .block_size = block_size}, sector);
  if (in.number<std::uint8_t>() == 0xff) sector[20] ^= std::byte{1};
  file.write(0, sector);
  for (std::uint64_t slot = 0; slot < slots_max && !in.empty(); ++slot) {
    const auto control = in.number<std::uint8_t>();
    if (control == 0) continue;
    const std::vector<std::byte> data(block_size, static_cast<std::byte>(control));
    const HoldEntry entry{.block = in.number<std::uint16_t>(),
                          .word = {in.number<std::uint32_t>()},
                          .kind = static_cast<HeldKind>(in.number<std::uint8_t>() % 5),
                          .data_checksum = (control & 2U) != 0 ? checksum64(data) : control};
    encode_hold_entry(volume_id(), layer_id, slot, entry, sector);
    if ((control & 1U) == 0) sector[12] ^= std::byte{1};
    const std::uint64_t offset = sector_size + slot * (sector_size + block_size);
    file.write(offset, sector);
    if (entry.kind == HeldKind::data || (control & 4U) != 0) file.write(offset + sector_size, data);
  }
  if (in.number<std::uint8_t>() % 4 == 1)
    file.size -= std::min<std::uint64_t>(file.size, in.number<std::uint16_t>());
  return file;
}

void try_file(FuzzInput in) {
  MemoryLoop loop;
  MemoryDirectory holds(loop, "holds");
  holds.files[HoldLayer::file_name(layer_id)] = make_file(in);
  const HoldLayer::Identity identity{
      .volume = volume_id(), .id = layer_id, .epoch = 3, .block_size = block_size};
  auto opened = loop.run(HoldLayer::open(loop, holds, identity, block_count));
  if (!opened) return;
  HoldLayer& layer = **opened;
  const AlignedBuffer content(block_size);
  std::uint64_t held_blocks = 0;
  for (BlockIndex block = 0; block < block_count; ++block) {
    const HeldBlock held = layer.find(block);
    if (held.kind == HeldKind::none) continue;
    ++held_blocks;
    if (held.kind == HeldKind::data) (void)loop.run(layer.read(held, 0, content.bytes()));
  }
  CHECK(held_blocks == layer.entries());

  // It goes on: what is appended is there, now and when it is opened again.
  const BlockIndex block = block_count - 1 - in.number<std::uint8_t>();
  if (layer.holds(block)) return;
  AlignedBuffer frame = AlignedBuffer::zeroed(layer.frame_size());
  std::memset(frame.data() + sector_size, 0x5a, block_size);
  CHECK(loop.run(layer.append(block, MapWord::of(2, BlockState::present), HeldKind::data, frame,
                              true))
            .has_value());
  opened->reset();
  opened = loop.run(HoldLayer::open(loop, holds, identity, block_count));
  CHECK(opened.has_value() && (*opened)->holds(block));
  CHECK(loop.run((*opened)->read((*opened)->find(block), 0, content.bytes())).has_value());
  CHECK(content.data()[0] == std::byte{0x5a});
}

}  // namespace
}  // namespace berth::disk

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace berth::disk;
  if (size < 2) return 0;
  const FuzzInput rest(data + 1, size - 1);
  switch (data[0] % 3) {
    case 0: try_header(rest); break;
    case 1: try_entry(rest); break;
    default: try_file(rest); break;
  }
  return 0;
}
