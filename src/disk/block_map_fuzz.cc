// The decoders of the block map, and what is built on them, from any bytes: nothing may be trusted
// because its checksum is right.
//
// Input: a byte with the mode, then
//   0  a superblock        1  a map page        2  an intent record        3  a record of the
//   journal 4  two journal areas as events, made into records with right checksums: what they mean,
//   and what a survey of the
//      areas makes of those that are damaged
//   5  a whole map file of such areas, with pages and intents: opened, read and written, checked
//   and repaired
// In modes 0 to 3 a further byte says whether the checksum is made right.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "disk/check.h"
#include "disk/check_journal.h"
#include "disk/closed_volume.h"
#include "disk/fuzz_support.h"
#include "disk/journal.h"
#include "disk/layout.h"
#include "disk/map_file.h"

namespace berth::disk {
namespace {

class FixedRandom final : public Random {
 public:
  void fill(MutableBytes bytes) override { std::ranges::fill(bytes, std::byte{0x77}); }
};

constexpr std::uint32_t block_size = 64 * KiB;
constexpr std::size_t records_max = 24;
constexpr std::size_t payload_max = 8 * KiB;

const Id128& volume_id() {
  static const Id128 id = MUST(Id128::parse("00112233-4455-4677-8899-aabbccddeeff"));
  return id;
}

std::vector<std::byte> padded(Bytes bytes, std::size_t size) {
  std::vector<std::byte> all(bytes.begin(), bytes.end());
  all.resize(size);
  return all;
}

void try_superblock(FuzzInput in) {
  const bool sealed = in.number<std::uint8_t>() != 0;
  std::vector<std::byte> sector = padded(in.rest(), sector_size);
  if (sealed) seal(sector);
  const auto superblock = decode_superblock(sector);
  if (!superblock) return;
  encode_superblock(*superblock, sector);
  CHECK(MUST(decode_superblock(sector)) == *superblock);
}

void try_page(FuzzInput in) {
  const bool sealed = in.number<std::uint8_t>() != 0;
  std::vector<std::byte> sector = padded(in.rest(), page_size);
  if (sealed) seal(sector);
  std::vector<MapWord> words(words_per_page);
  const auto header = decode_page(volume_id(), 3, sector, words);
  if (!header) return;
  CHECK(header->page == 3 && header->sequence != 0);
  encode_page(volume_id(), *header, words, sector);
  CHECK(decode_page(volume_id(), 3, sector, words).has_value());
}

void try_intents(FuzzInput in) {
  const bool sealed = in.number<std::uint8_t>() != 0;
  const Bytes rest = in.rest();
  std::vector<std::byte> slot =
      padded(rest, std::min<std::size_t>(intent_slot_size, round_up(rest.size() + 1, 512)));
  const std::size_t count = load_le<std::uint32_t>(slot.data() + 4);
  if (sealed)
    seal(MutableBytes(slot).first(
        std::min(slot.size(), intent_header_size + count % 8192 * sizeof(HotRegion))));
  const auto record = decode_intents(volume_id(), slot);
  if (!record) return;
  CHECK(record->regions.size() <= intent_regions_max);
  std::vector<std::byte> again(intent_record_size(record->regions.size()));
  encode_intents(volume_id(), *record, again);
  CHECK(decode_intents(volume_id(), again)->regions == record->regions);
}

void try_record(FuzzInput in) {
  const bool sealed = in.number<std::uint8_t>() != 0;
  const Bytes rest = in.rest();
  std::vector<std::byte> record(rest.begin(), rest.end());
  const auto head = peek_record(volume_id(), record);
  if (sealed && head && head->length <= record.size())
    seal(MutableBytes(record).first(head->length));
  const auto decoded = decode_record(volume_id(), record);
  if (!decoded) return;
  if (const auto* event = std::get_if<JournalEvent>(&decoded->content)) {
    const auto again = encode_event(volume_id(), decoded->generation, decoded->sequence, *event);
    CHECK(decode_record(volume_id(), again).has_value());
    CHECK(!describe(*event).empty());
    VolumeState state;
    state.size = MiB;
    (void)state.apply(*event);
  }
}

/// A record with this kind and payload, and a right checksum.
std::vector<std::byte> make_record(std::uint64_t generation, std::uint64_t sequence,
                                   std::uint16_t kind, Bytes payload) {
  std::vector<std::byte> record = encode_event(volume_id(), generation, sequence, ReleaseEvent{});
  record.resize(round_up(journal_header_size + payload.size(), sector_size));
  std::ranges::fill(record.begin() + journal_header_size, record.end(), std::byte{0});
  std::ranges::copy(payload, record.begin() + journal_header_size);
  const std::size_t length = journal_header_size + payload.size();
  store_le<std::uint16_t>(record.data() + 4, kind);
  store_le<std::uint32_t>(record.data() + 48, static_cast<std::uint32_t>(length));
  seal(MutableBytes(record).first(length));
  return record;
}

/// An area: a control byte for each record (its kind; 0x40: damaged; 0x80: the area ends), then its
/// payload.
std::vector<std::byte> make_area(FuzzInput& in, std::uint64_t generation) {
  std::vector<std::byte> area;
  for (std::size_t sequence = 0; sequence < records_max; ++sequence) {
    const auto control = in.number<std::uint8_t>();
    if ((control & 0x80U) != 0 || in.empty()) break;
    std::vector<std::byte> record;
    if (sequence == 0 && (control & 0x3fU) != 0) {
      VolumeState state;
      state.size = GiB;
      record = encode_state(volume_id(), generation, state);
    } else {
      record = make_record(generation, sequence, sequence == 0 ? 0 : control & 0x3fU,
                           in.piece(payload_max));
    }
    if ((control & 0x40U) != 0) record[20] ^= std::byte{1};
    area.insert(area.end(), record.begin(), record.end());
  }
  return area;
}

void try_areas(FuzzInput in) {
  const std::array<std::vector<std::byte>, 2> bytes{make_area(in, 7),
                                                    make_area(in, in.number<std::uint8_t>())};
  std::array<AreaSurvey, 2> areas;
  for (std::size_t i = 0; i < 2; ++i) {
    auto survey = survey_area(volume_id(), bytes[i]);
    if (!survey) return;
    CHECK(survey->end <= bytes[i].size() && survey->records < records_max);
    areas[i] = std::move(*survey);
  }
  const JournalVerdict verdict = judge_journal(volume_id(), areas);
  CHECK(verdict.readable == (areas[0].state.has_value() || areas[1].state.has_value()));
  if (!verdict.readable) return;
  const auto record = encode_state(volume_id(), 8, verdict.state);
  const auto decoded = decode_record(volume_id(), record);
  CHECK(decoded.has_value());
  CHECK(encode_state(volume_id(), 8, std::get<VolumeState>(decoded->content)) == record);
}

/// What is said of a volume that came from elsewhere is done as a whole, or nothing is.
void try_arrival(MemoryLoop& loop, MemoryDirectory& directory, std::uint8_t how) {
  const auto opened = loop.run(ClosedVolume::open(loop, directory, false));
  if (!opened) return;
  ClosedVolume& volume = **opened;
  FixedRandom random;
  const Arrival arrival = how % 2 == 0 ? Arrival::moved : Arrival::copied;
  const auto settled = loop.run(volume.settle(random, arrival));
  if (!settled) return;
  CHECK(settled->volume == volume.id());
  CHECK(arrival == Arrival::moved || volume.id() == random.id());
  const auto again = loop.run(ClosedVolume::open(loop, directory, true));
  CHECK(again.has_value() && (*again)->id() == volume.id());
}

void try_file(FuzzInput in) {
  MemoryLoop loop;
  MemoryDirectory directory(loop, "volume");
  MemoryDirectory holds(loop, "holds");
  directory.below = &holds;
  directory.files["data"].size = GiB;
  MemoryContent& map = directory.files[MapFile::file_name];
  std::vector<std::byte> sector(sector_size);
  encode_superblock({.volume = volume_id(), .block_size = block_size, .created_ms = 0}, sector);
  map.write(superblock_offset, sector);
  map.write(superblock_copy_offset, sector);
  map.write(journal_offset_a, make_area(in, 7));
  map.write(journal_offset_b, make_area(in, in.number<std::uint8_t>()));
  for (int i = 0; i < 3; ++i) {
    std::vector<std::byte> slot = padded(in.piece(256), sector_size);
    seal(MutableBytes(slot).first(intent_header_size));
    map.write(intent_ring_offset + in.number<std::uint8_t>() % intent_slot_count * intent_slot_size,
              slot);
    const std::uint64_t page = in.number<std::uint8_t>() % 4;
    std::vector<std::byte> words = padded(in.piece(256), page_size);
    seal(words);
    map.write(page_slot_offset(page, in.number<std::uint8_t>() % 2), words);
  }
  const bool repair = in.number<std::uint8_t>() % 2 != 0;

  {
    auto opened = loop.run(MapFile::open(loop, directory, true));
    if (opened) {
      std::vector<MapWord> words(4 * words_per_page);
      CHECK(loop.run((*opened)->read_pages(0, 4, words)).has_value());
      CHECK(loop.run((*opened)->read_intents()).has_value());
    }
  }
  if (!repair) try_arrival(loop, directory, in.number<std::uint8_t>());
  const auto report = loop.run(check_volume(loop, directory, {.repair = repair}));
  if (!report || !repair || !report->sound()) return;
  CHECK(loop.run(MapFile::open(loop, directory, false)).has_value());
  const auto again = loop.run(check_volume(loop, directory, {}));
  CHECK(again.has_value() && again->sound());
}

}  // namespace
}  // namespace berth::disk

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace berth::disk;
  if (size < 2) return 0;
  const FuzzInput rest(data + 1, size - 1);
  switch (data[0] % 6) {
    case 0: try_superblock(rest); break;
    case 1: try_page(rest); break;
    case 2: try_intents(rest); break;
    case 3: try_record(rest); break;
    case 4: try_areas(rest); break;
    default: try_file(rest); break;
  }
  return 0;
}
