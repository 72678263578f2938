// The formats of a volume's files, held against bytes in tests/data/formats that do not change with
// the code. A file there is a structure without the zeros at its end; docs/formats says what every
// byte of it is. Whoever changes a format on purpose runs this once with BERTH_UPDATE_FORMATS=1: it
// writes those files again, and the seeds of the fuzz targets.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <gtest/gtest.h>

#include "base/checksum.h"
#include "disk/hold_format.h"
#include "disk/journal.h"
#include "disk/layout.h"

namespace berth::disk {
namespace {

using Buffer = std::vector<std::byte>;

Id128 id_of(std::string_view text) { return MUST(Id128::parse(text)); }
const Id128 volume = id_of("00112233-4455-4677-8899-aabbccddeeff");
const Id128 nonce = id_of("a0a1a2a3-a4a5-46a7-a8a9-aaabacadaeaf");
const Id128 group = id_of("b0b1b2b3-b4b5-46b7-b8b9-babbbcbdbebf");
const Id128 session = id_of("c0c1c2c3-c4c5-46c7-88c9-cacbcccdcecf");
const Id128 copy = id_of("d0d1d2d3-d4d5-46d7-88d9-dadbdcdddedf");

bool updates() {
  return std::getenv("BERTH_UPDATE_FORMATS") != nullptr;
}  // NOLINT(concurrency-mt-unsafe)

std::filesystem::path data_directory() {
  return std::filesystem::path(BERTH_TEST_DATA_DIR) / "formats";
}
std::filesystem::path corpus(const std::string& target) {
  return std::filesystem::path(BERTH_TEST_DATA_DIR).parent_path() / "fuzz" / "corpus" / target;
}

Buffer load(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << "cannot read " << path;
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  return {as_bytes(bytes).begin(), as_bytes(bytes).end()};
}

void save(const std::filesystem::path& path, Bytes bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out << as_text(bytes);
  ASSERT_TRUE(out.good()) << "cannot write " << path;
}

Buffer trimmed(Buffer bytes) {
  while (!bytes.empty() && bytes.back() == std::byte{0}) bytes.pop_back();
  return bytes;
}

Buffer padded(Buffer bytes, std::size_t size) {
  bytes.resize(std::max(size, bytes.size()));
  return bytes;
}

/// The bytes of the file, which are those of `encoded`.
Buffer golden(const std::string& name, const Buffer& encoded) {
  const auto path = data_directory() / name;
  if (updates()) save(path, trimmed(encoded));
  Buffer bytes = load(path);
  EXPECT_EQ(bytes, trimmed(encoded)) << name << " is written otherwise than it was";
  return padded(std::move(bytes), encoded.size());
}

/// An input of a fuzz target: its mode, flags, and the bytes.
void seed(const std::string& target, const std::string& name,
          std::initializer_list<std::uint8_t> first, const Buffer& bytes) {
  if (!updates()) return;
  Buffer input;
  for (const std::uint8_t byte : first) input.push_back(std::byte{byte});
  input.insert(input.end(), bytes.begin(), bytes.end());
  save(corpus(target) / name, input);
}

TEST(FormatsTest, TheChecksumIsXxh3With64Bits) {
  EXPECT_EQ(checksum64({}),
            0x2d06800538d394c2U);  // of nothing, with seed 0: from the xxHash specification
}

TEST(FormatsTest, Superblock) {
  const Superblock superblock{
      .volume = volume, .block_size = 64 * KiB, .created_ms = 1'700'000'000'000};
  Buffer sector(sector_size);
  encode_superblock(superblock, sector);
  const Buffer bytes = golden("superblock", sector);
  EXPECT_EQ(MUST(decode_superblock(bytes)), superblock);
  seed("block_map_fuzz", "superblock", {0, 0}, trimmed(bytes));
}

TEST(FormatsTest, Page) {
  const std::vector<MapWord> words{
      MapWord{}, MapWord::of(1, BlockState::present), MapWord::of(2, BlockState::zero),
      MapWord::of(3, BlockState::absent), MapWord::of(epoch_max, BlockState::present)};
  Buffer sector(page_size);
  encode_page(volume, {.page = 3, .sequence = 5}, words, sector);
  const Buffer bytes = golden("page", sector);
  std::vector<MapWord> decoded(words_per_page);
  const auto header = decode_page(volume, 3, bytes, decoded);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->sequence, 5U);
  for (std::size_t i = 0; i < words.size(); ++i) EXPECT_EQ(decoded[i], words[i]);
  for (std::size_t i = words.size(); i < words_per_page; ++i) EXPECT_EQ(decoded[i], MapWord{});
  seed("block_map_fuzz", "page", {1, 0}, trimmed(bytes));
}

TEST(FormatsTest, Intents) {
  const IntentRecord record{
      .sequence = 42,
      .epoch = 9,
      .regions = {
          {.region = 0, .epoch = 9}, {.region = 7, .epoch = 8}, {.region = 1000, .epoch = 9}}};
  Buffer slot(intent_record_size(record.regions.size()));
  encode_intents(volume, record, slot);
  const Buffer bytes = golden("intents", slot);
  const auto decoded = decode_intents(volume, bytes);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->sequence, 42U);
  EXPECT_EQ(decoded->epoch, 9U);
  EXPECT_EQ(decoded->regions, record.regions);
  seed("block_map_fuzz", "intents", {2, 0}, trimmed(bytes));
}

/// The record without its padding.
Buffer record_of(const Buffer& sectors) {
  return {sectors.begin(),
          sectors.begin() + static_cast<std::ptrdiff_t>(peek_record(volume, sectors)->length)};
}

TEST(FormatsTest, JournalState) {
  VolumeState state;
  state.volume = copy;
  state.size = 10 * GiB;
  state.backing = "volume:base@golden";
  state.backing_limit = 8 * GiB;
  state.epoch = 7;
  state.session = session;
  state.intents_before = 41;
  state.clean = true;
  state.data = {.size = 10 * GiB,
                .inode = 1234,
                .device = 0x801,
                .modified_ns = 1'700'000'000'123'456'789,
                .device_id = "wwn-0x5000c500a1b2c3d4"};
  state.page_versions = 77;
  state.recovered = 4;
  state.vouched_since = 2;
  state.void_reason = VoidReason::intents_missing;
  state.next_layer = 4;
  state.checkpoints = {{.name = "nightly",
                        .epoch = 5,
                        .nonce = nonce,
                        .durability = Durability::volatile_,
                        .size = 9 * GiB,
                        .created_ms = 1'700'000'000'001,
                        .group = group,
                        .provisional = true,
                        .lost = false}};
  state.refpoints["monday"] = {.name = "monday",
                               .epoch = 3,
                               .nonce = nonce,
                               .size = 9 * GiB,
                               .created_ms = 1'700'000'000'002,
                               .group = {}};
  state.layers = {{.id = 3, .epoch = 5}};
  state.pending_resize =
      ResizeEvent{.size = 10 * GiB, .old_size = 9 * GiB, .epoch = 6, .finished = false};
  state.pending_revert = RevertEvent{.checkpoint = "nightly", .finished = false};
  const Buffer encoded = encode_state(volume, 2, state);
  const Buffer bytes = golden("journal-0-state", encoded);
  const auto record = MUST(decode_record(volume, bytes));
  EXPECT_EQ(record.generation, 2U);
  EXPECT_EQ(record.sequence, 0U);
  EXPECT_EQ(encode_state(volume, 2, std::get<VolumeState>(record.content)), encoded);
  const auto& decoded = std::get<VolumeState>(record.content);
  EXPECT_EQ(decoded.data, state.data);
  EXPECT_EQ(decoded.backing, state.backing);
  EXPECT_EQ(decoded.find_checkpoint("nightly")->group, group);
  EXPECT_EQ(decoded.find_refpoint("monday")->nonce, nonce);
  seed("block_map_fuzz", "journal-0-state", {3, 0}, record_of(bytes));
}

struct NamedEvent {
  const char* name;
  JournalEvent event;
};

/// In the order of their kinds, from 1 on.
std::vector<NamedEvent> named_events() {
  return {
      {"journal-1-cut", CutEvent{.epoch = 5,
                                 .nonce = nonce,
                                 .checkpoint = "nightly",
                                 .refpoint = "monday",
                                 .durability = Durability::volatile_,
                                 .layer = 3,
                                 .created_ms = 1'700'000'000'001,
                                 .group = group}},
      {"journal-2-release", ReleaseEvent{.checkpoint = "nightly"}},
      {"journal-3-convert", ConvertEvent{.checkpoint = "nightly", .refpoint = "monday"}},
      {"journal-4-delete-refpoint", DeleteRefpointEvent{.refpoint = "monday"}},
      {"journal-5-settle", SettleEvent{.group = group, .committed = true}},
      {"journal-6-open", OpenEvent{.kind = OpenKind::power_loss,
                                   .epoch = 8,
                                   .session = session,
                                   .intents_before = 41,
                                   .recovered = 7,
                                   .vouched_since = 8,
                                   .void_reason = VoidReason::intents_missing}},
      {"journal-7-close", CloseEvent{.epoch = 8,
                                     .data = {.size = GiB,
                                              .inode = 1234,
                                              .device = 0x801,
                                              .modified_ns = 1'700'000'000'123'456'789,
                                              .device_id = ""},
                                     .page_versions = 77}},
      {"journal-8-resize",
       ResizeEvent{.size = 2 * GiB, .old_size = GiB, .epoch = 8, .finished = true}},
      {"journal-9-revert", RevertEvent{.checkpoint = "nightly", .finished = true}},
      {"journal-10-lost", LostEvent{.checkpoints = {"nightly", "hourly"}}},
      {"journal-11-layer", LayerEvent{.layer = 3, .epoch = 5, .present = true}},
      {"journal-12-identity", IdentityEvent{.volume = copy,
                                            .data = {.size = GiB,
                                                     .inode = 1234,
                                                     .device = 0x801,
                                                     .modified_ns = 1'700'000'000'123'456'789,
                                                     .device_id = ""},
                                            .vouched_since = 8,
                                            .void_reason = VoidReason::copied,
                                            .lost = true}},
  };
}

TEST(FormatsTest, JournalEvents) {
  const auto events = named_events();
  ASSERT_EQ(events.size(), std::variant_size_v<JournalEvent>);
  for (std::size_t i = 0; i < events.size(); ++i) {
    SCOPED_TRACE(events[i].name);
    ASSERT_EQ(events[i].event.index(), i);
    const Buffer encoded = encode_event(volume, 2, i + 1, events[i].event);
    const Buffer bytes = golden(events[i].name, encoded);
    const auto record = MUST(decode_record(volume, bytes));
    EXPECT_EQ(record.sequence, i + 1);
    EXPECT_EQ(encode_event(volume, 2, i + 1, std::get<JournalEvent>(record.content)), encoded);
    seed("block_map_fuzz", events[i].name, {3, 0}, record_of(bytes));
  }
}

TEST(FormatsTest, HoldHeader) {
  Buffer sector(sector_size);
  encode_hold_header({.volume = volume, .layer = 5, .block_size = 64 * KiB}, sector);
  const Buffer bytes = golden("hold-header", sector);
  const HoldHeader header = MUST(decode_hold_header(bytes));
  EXPECT_EQ(header.volume, volume);
  EXPECT_EQ(header.layer, 5U);
  EXPECT_EQ(header.block_size, 64 * KiB);
  seed("hold_fuzz", "header", {0, 0}, padded(trimmed(bytes), 56));
}

TEST(FormatsTest, HoldEntries) {
  constexpr std::array<const char*, 3> names{"hold-entry-data", "hold-entry-zero",
                                             "hold-entry-backing"};
  const Buffer content(64 * KiB, std::byte{0x5a});
  for (std::uint8_t kind = 1; kind <= 3; ++kind) {
    const HoldEntry entry{.block = 1000,
                          .word = MapWord::of(4, BlockState::present),
                          .kind = static_cast<HeldKind>(kind),
                          .data_checksum = kind == 1 ? checksum64(content) : 0};
    Buffer sector(sector_size);
    encode_hold_entry(volume, 5, 9, entry, sector);
    const Buffer bytes = golden(names[kind - 1], sector);
    const auto decoded = decode_hold_entry(volume, 5, 9, bytes);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(decoded->block, 1000U);
    EXPECT_EQ(decoded->word, entry.word);
    EXPECT_EQ(decoded->kind, entry.kind);
    EXPECT_EQ(decoded->data_checksum, entry.data_checksum);
    seed("hold_fuzz", names[kind - 1], {1, 0}, padded(trimmed(bytes), 72));
  }
}

// --- Seeds that are more than one structure.

Buffer payload_of(const JournalEvent& event) {
  const Buffer record = encode_event(volume, 1, 1, event);
  const std::uint64_t length = peek_record(volume, record)->length;
  return {record.begin() + journal_header_size,
          record.begin() + static_cast<std::ptrdiff_t>(length)};
}

void add_number(Buffer& into, std::uint64_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) into.push_back(static_cast<std::byte>(value >> (8 * i)));
}

/// As block_map_fuzz takes an area: a state that it makes itself, then events.
Buffer area_of(const std::vector<NamedEvent>& events, unsigned damaged) {
  Buffer area;
  add_number(area, 1, 1);
  for (std::size_t i = 0; i < events.size(); ++i) {
    const Buffer payload = payload_of(events[i].event);
    add_number(area, (events[i].event.index() + 1) | (i == damaged ? 0x40U : 0U), 1);
    add_number(area, payload.size(), 2);
    area.insert(area.end(), payload.begin(), payload.end());
  }
  add_number(area, 0x80, 1);
  return area;
}

TEST(FormatsTest, SeedsOfTheFuzzTargets) {
  if (!updates()) return;
  std::vector<NamedEvent> life = named_events();
  life = {{"", life[5].event}, {"", life[10].event}, {"", life[0].event}, {"", life[8].event},
          {"", life[2].event}, {"", life[7].event},  {"", life[6].event}, {"", life[11].event}};
  for (const unsigned damaged : {255U, 0U, 2U, 4U}) {
    Buffer areas = area_of(life, damaged);
    add_number(areas, damaged == 0 ? 8 : 6, 1);  // the generation of the second
    const Buffer second = area_of(life, 255);
    areas.insert(areas.end(), second.begin(), second.end());
    seed("block_map_fuzz", "areas-" + std::to_string(damaged), {4}, areas);
    for (std::uint8_t i = 0; i < 3; ++i) {
      const Buffer intents = load(data_directory() / "intents");
      add_number(areas, 64, 2);
      areas.insert(areas.end(), intents.begin(), intents.begin() + 64);
      add_number(areas, i, 1);
      add_number(areas, 3, 1);
      const Buffer page = load(data_directory() / "page");
      add_number(areas, page.size(), 2);
      areas.insert(areas.end(), page.begin(), page.end());
      add_number(areas, i, 1);
    }
    add_number(areas, 1, 1);
    seed("block_map_fuzz", "file-" + std::to_string(damaged), {5}, areas);
  }
  for (const bool copied : {false, true}) {  // closed, then moved or copied
    // What the target makes a data file of.
    const CloseEvent closed{.epoch = 8, .data = {.size = GiB}, .page_versions = 0};
    Buffer file = area_of({{"", life[0].event}, {"", closed}}, 255);
    add_number(file, 0, 1);
    add_number(file, 0x80, 1);
    for (int i = 0; i < 3; ++i) add_number(file, 0, 7);
    add_number(file, 0, 1);
    add_number(file, copied ? 1 : 0, 1);
    seed("block_map_fuzz", copied ? "file-copied" : "file-moved", {5}, file);
  }
  Buffer slots;
  add_number(slots, 0, 1);
  for (std::uint16_t slot = 0; slot < 20; ++slot) {
    add_number(slots, slot == 7 ? 0 : slot == 9 ? 2 : 7, 1);
    if (slot == 7) continue;
    add_number(slots, slot * 3U, 2);
    add_number(slots, MapWord::of(slot, BlockState::present).raw, 4);
    add_number(slots, slot % 4U, 1);
  }
  seed("hold_fuzz", "file", {2}, slots);
}

}  // namespace
}  // namespace berth::disk
