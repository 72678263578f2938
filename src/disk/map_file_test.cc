#include "disk/map_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "testing/sim_machine.h"

namespace berth::disk {
namespace {

Id128 id_of(std::uint8_t first) {
  Id128 id;
  id.bytes.fill(static_cast<std::byte>(first));
  return id;
}

class MapFileTest : public testing::Test {
 protected:
  explicit MapFileTest(std::uint64_t seed = 1) : machine_(seed) {}
  template <typename T>
  T run(Task<T> task) {
    return machine_.loop.run_until_complete(std::move(task));
  }
  void create() {
    VolumeState state;
    state.size = GiB;
    MUST(run(MapFile::create(machine_.loop, *machine_.directory, superblock_, state)));
    MUST(machine_.directory->sync());
    MUST(open());
  }
  Result<void> open(bool read_only = false) {
    map_.reset();
    map_ = TRY(run(MapFile::open(machine_.loop, *machine_.directory, read_only)));
    return {};
  }
  void restart(bool power_loss) {
    map_.reset();
    machine_.restart(power_loss);
  }
  Result<void> append(const JournalEvent& event) { return run(map_->append(event)); }
  void refpoint(const std::string& name) {
    const auto appended = append(CutEvent{.epoch = map_->state().epoch,
                                          .nonce = id_of(3),
                                          .checkpoint = {},
                                          .refpoint = name,
                                          .group = {}});
    ASSERT_TRUE(appended.has_value()) << appended.error().message();
  }
  /// A record of about `size` bytes that changes nothing.
  JournalEvent padding(std::size_t size) {
    LostEvent event;
    for (std::size_t i = 0; i < size / 4002; ++i)
      event.checkpoints.push_back(std::string(4000, 'x'));
    return event;
  }
  /// Leaves less than `left` bytes in the area.
  void fill_area(std::uint64_t left) {
    for (std::uint64_t used = sector_size; used + 512 * KiB + left < journal_area_size;) {
      const JournalEvent event = padding(500 * KiB);
      used += encode_event(superblock_.volume, 1, 1, event).size();
      MUST(append(event));
    }
  }
  void damage(std::uint64_t offset, std::size_t length = 1) {
    MUST(machine_.host.corrupt("vol/map", offset, length));
  }
  void write_raw(std::uint64_t offset, Bytes bytes) {
    const auto file = machine_.open("map");
    MUST(machine_.write(*file, offset, bytes));
    MUST(machine_.sync(*file));
  }
  Bytes encoded_page(std::uint64_t page, std::uint64_t sequence, Epoch epoch) {
    const std::vector<MapWord> words(words_per_page, MapWord::of(epoch, BlockState::present));
    encode_page(superblock_.volume, {.page = page, .sequence = sequence}, words,
                page_buffer_.bytes());
    return page_buffer_.bytes();
  }

  SimMachine machine_;
  Superblock superblock_{.volume = id_of(0x77), .block_size = 64 * KiB, .created_ms = 5};
  std::unique_ptr<MapFile> map_;
  AlignedBuffer page_buffer_{page_size};
};

TEST_F(MapFileTest, WhatWasAppendedIsThereWhenItIsOpenedAgain) {
  create();
  for (int i = 0; i < 100; ++i) refpoint(fmt::format("r{}", i));
  MUST(append(DeleteRefpointEvent{"r50"}));
  MUST(open());
  EXPECT_EQ(map_->superblock(), superblock_);
  EXPECT_EQ(map_->state().refpoints.size(), 99U);
  EXPECT_EQ(map_->state().find_refpoint("r99")->epoch, 100U);
}

TEST_F(MapFileTest, TheJournalGoesOnInTheOtherAreaWhenOneIsFull) {
  create();
  refpoint("first");
  for (int round = 0; round < 3; ++round) {
    fill_area(MiB);
    for (int i = 0; i < 4; ++i) MUST(append(padding(500 * KiB)));  // over the edge
    refpoint(fmt::format("round {}", round));
    MUST(open());
    EXPECT_EQ(map_->state().refpoints.size(), 2U + static_cast<std::size_t>(round));
  }
}

TEST_F(MapFileTest, TenThousandReferencePointsMoveToTheOtherArea) {
  create();
  for (int i = 0; i < 10'000; ++i) refpoint(fmt::format("reference-point-{}", i));
  fill_area(MiB);
  for (int i = 0; i < 4; ++i) MUST(append(padding(500 * KiB)));
  for (int i = 0; i < 10; ++i)
    MUST(append(DeleteRefpointEvent{fmt::format("reference-point-{}", i)}));
  MUST(open());
  EXPECT_EQ(map_->state().refpoints.size(), 9'990U);
  EXPECT_EQ(map_->state().find_refpoint("reference-point-9999")->epoch, 10'000U);
}

TEST_F(MapFileTest, AStateThatIsCutShortLeavesTheOtherAreaInForce) {
  create();
  refpoint("r");
  auto state = encode_state(superblock_.volume, 2, map_->state());
  state[3000] = std::byte{1};
  for (const std::size_t length : {std::size_t{512}, std::size_t{2048}}) {
    write_raw(journal_offset_b, Bytes(state).first(length));
    MUST(open());
    EXPECT_EQ(map_->state().refpoints.size(), 1U);
  }
  refpoint("next");
  MUST(open());
  EXPECT_EQ(map_->state().refpoints.size(), 2U);
}

TEST_F(MapFileTest, ARecordThatIsCutShortNeverHappenedAndItsPlaceIsUsedAgain) {
  create();
  refpoint("r1");
  refpoint("r2");
  damage(journal_offset_a + 2 * sector_size + 40);  // after the state and r1
  MUST(open());
  EXPECT_EQ(map_->state().refpoints.size(), 1U);
  refpoint("r3");
  MUST(open());
  EXPECT_EQ(map_->state().refpoints.size(), 2U);
  EXPECT_NE(map_->state().find_refpoint("r3"), nullptr);
}

TEST_F(MapFileTest, ARecordInTheMiddleThatCannotBeReadIsCorrupt) {
  create();
  for (int i = 0; i < 5; ++i) refpoint(fmt::format("r{}", i));
  damage(journal_offset_a + 2 * sector_size + 40);
  const auto opened = open();
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().kind(), ErrorKind::corrupt);
  EXPECT_NE(opened.error().message().find("check --repair"), std::string::npos)
      << opened.error().message();
}

TEST_F(MapFileTest, ALongRecordInTheMiddleThatCannotBeReadIsCorrupt) {
  for (const std::size_t length : {2 * sector_size, 10 * sector_size, 900 * KiB}) {
    SCOPED_TRACE(length);
    SimMachine machine(length);
    VolumeState state;
    state.size = GiB;
    const auto run_on = [&machine](auto task) {
      return machine.loop.run_until_complete(std::move(task));
    };
    MUST(run_on(MapFile::create(machine.loop, *machine.directory, superblock_, state)));
    auto map = MUST(run_on(MapFile::open(machine.loop, *machine.directory, false)));
    MUST(run_on(map->append(padding(length + 4002))));
    MUST(run_on(map->append(
        CutEvent{.epoch = 1, .nonce = {}, .checkpoint = {}, .refpoint = "r", .group = {}})));
    map.reset();
    MUST(machine.host.corrupt("vol/map", journal_offset_a + sector_size + 100, 1));
    const auto opened = run_on(MapFile::open(machine.loop, *machine.directory, false));
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().kind(), ErrorKind::corrupt);
  }
}

TEST_F(MapFileTest, ARecordThatIsTooLongToBeFoundAgainIsRefused) {
  create();
  EXPECT_EQ(append(padding(event_record_size_max)).error().kind(), ErrorKind::limit);
  refpoint("r");
  MUST(open());
  EXPECT_EQ(map_->state().refpoints.size(), 1U);
}

TEST_F(MapFileTest, ABadSuperblockHasACopy) {
  create();
  damage(superblock_offset + 20);
  MUST(open());
  EXPECT_EQ(map_->superblock(), superblock_);
  damage(superblock_copy_offset + 20);
  const auto opened = open();
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().kind(), ErrorKind::corrupt);
}

TEST_F(MapFileTest, OfAllEventsThoseThatWereAcknowledgedSurviveAPowerLoss) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    SimMachine machine(seed);
    VolumeState state;
    state.size = GiB;
    const auto made = machine.loop.run_until_complete(
        MapFile::create(machine.loop, *machine.directory, superblock_, state));
    ASSERT_TRUE(made.has_value());
    MUST(machine.directory->sync());
    auto map = MUST(
        machine.loop.run_until_complete(MapFile::open(machine.loop, *machine.directory, false)));
    Epoch acknowledged = 0;
    const std::uint64_t steps = 5 + seed;
    for (std::uint64_t left = steps; left > 0;) {
      const std::uint64_t before = machine.loop.steps();
      const auto done = machine.loop.run_at_most(
          left, map->append(CutEvent{.epoch = acknowledged + 1,
                                     .nonce = {},
                                     .checkpoint = {},
                                     .refpoint = fmt::format("r{}", acknowledged + 1),
                                     .group = {}}));
      if (!done) break;
      ++acknowledged;
      left -= std::min(left, machine.loop.steps() - before);
    }
    map.reset();
    machine.restart(true);
    map = MUST(
        machine.loop.run_until_complete(MapFile::open(machine.loop, *machine.directory, false)));
    const std::size_t found = map->state().refpoints.size();
    EXPECT_GE(found, acknowledged) << "seed " << seed;
    EXPECT_LE(found, acknowledged + 1) << "seed " << seed;
    map.reset();
  }
}

TEST_F(MapFileTest, AFullDiskTakesNothingAndTheNextTryGoesOn) {
  create();
  refpoint("r1");
  // What is written beforehand is the first 64 KiB of an area.
  while (true) {
    machine_.host.set_space_max(machine_.host.space_used());
    const auto appended = append(padding(500 * KiB));
    if (!appended) {
      EXPECT_EQ(appended.error().kind(), ErrorKind::no_space);
      break;
    }
  }
  refpoint("r2");  // small ones find room in what is allocated
  machine_.host.set_space_max(UINT64_MAX);
  MUST(append(padding(500 * KiB)));
  refpoint("r3");
  MUST(open());
  EXPECT_EQ(map_->state().refpoints.size(), 3U);
}

TEST_F(MapFileTest, AFailedSyncIsForGoodUntilTheNextOpen) {
  create();
  refpoint("r1");
  machine_.host.faults().add({.path = "vol/map", .on = fault_on::sync});
  EXPECT_EQ(append(DeleteRefpointEvent{"r1"}).error().kind(), ErrorKind::io_error);
  EXPECT_TRUE(map_->failed());
  EXPECT_EQ(append(DeleteRefpointEvent{"r1"}).error().kind(), ErrorKind::io_error);
  EXPECT_EQ(run(map_->write_page(0, 1, encoded_page(0, 1, 1))).error().kind(), ErrorKind::io_error);
  EXPECT_EQ(run(map_->write_intents({.sequence = 1, .epoch = 1, .regions = {}})).error().kind(),
            ErrorKind::io_error);
  restart(true);
  MUST(open());
  MUST(append(CloseEvent{}));
}

// --- Pages.

class MapPagesTest : public MapFileTest {
 protected:
  void SetUp() override { create(); }
  void write_page(std::uint64_t page, std::uint64_t sequence, Epoch epoch) {
    MUST(run(map_->write_page(page, sequence, encoded_page(page, sequence, epoch))));
    MUST(run(map_->sync()));
  }
  struct Seen {
    MapFile::LoadedPage page;
    MapWord word;
  };
  Seen read(std::uint64_t page) {
    std::vector<MapWord> words(words_per_page);
    const auto loaded = MUST(run(map_->read_pages(page, 1, words)));
    return {.page = loaded.at(0), .word = words.at(5)};
  }
};

TEST_F(MapPagesTest, TheSlotWithTheHigherSequenceCounts) {
  EXPECT_EQ(read(3).page.sequence, 0U);
  EXPECT_EQ(read(3).word, MapWord{});
  write_page(3, 1, 10);
  EXPECT_EQ(read(3).word.epoch(), 10U);
  write_page(3, 2, 20);
  EXPECT_EQ(read(3).word.epoch(), 20U);
  write_page(3, 3, 30);
  EXPECT_EQ(read(3).word.epoch(), 30U);
  EXPECT_EQ(read(2).page.sequence, 0U);
  EXPECT_EQ(read(4).page.sequence, 0U);
}

TEST_F(MapPagesTest, ATornWriteLeavesTheOlderVersion) {
  write_page(3, 1, 10);
  write_page(3, 2, 20);
  damage(page_slot_offset(3, 1) + 700);
  EXPECT_EQ(read(3).word.epoch(), 10U);
  EXPECT_FALSE(read(3).page.damaged);
}

TEST_F(MapPagesTest, AVersionInTheSlotOfAnotherOneIsNone) {
  write_page(3, 1, 10);
  write_page(3, 2, 20);
  // With the sequence of the other slot's version there would be two that claim to be the newest.
  const Bytes twin = encoded_page(3, 2, 99);
  write_raw(page_slot_offset(3, 0), twin);
  EXPECT_EQ(read(3).page.sequence, 2U);
  EXPECT_EQ(read(3).word.epoch(), 20U);
  EXPECT_TRUE(read(3).page.doubtful);
}

TEST_F(MapPagesTest, BothSlotsDamagedIsDamage) {
  write_page(3, 1, 10);
  write_page(3, 2, 20);
  damage(page_slot_offset(3, 0) + 700);
  damage(page_slot_offset(3, 1) + 700);
  EXPECT_TRUE(read(3).page.damaged);
  EXPECT_EQ(read(3).page.sequence, 0U);
}

TEST_F(MapPagesTest, AFirstWriteThatIsTornWasNever) {
  write_page(3, 1, 10);
  damage(page_slot_offset(3, 0) + 700);
  EXPECT_FALSE(read(3).page.damaged);
  EXPECT_EQ(read(3).word, MapWord{});
}

TEST_F(MapPagesTest, ManyPagesAreReadAtOnce) {
  for (std::uint64_t page = 0; page < 300; page += 3)
    write_page(page, 1, static_cast<Epoch>(page + 1));
  std::vector<MapWord> words(256 * words_per_page);
  const auto loaded = MUST(run(map_->read_pages(40, 256, words)));
  for (std::uint64_t i = 0; i < 256; ++i) {
    const bool written = (40 + i) % 3 == 0;
    EXPECT_EQ(loaded[i].sequence, written ? 1U : 0U);
    EXPECT_EQ(words[i * words_per_page + 1007].epoch(), written ? 40 + i + 1 : 0U);
  }
}

TEST_F(MapPagesTest, PagesThatWereNeverWrittenAreSkipped) {
  EXPECT_EQ(MUST(map_->next_written_page(0, 1000)), 1000U);
  write_page(100, 1, 1);
  write_page(500, 1, 1);
  EXPECT_EQ(MUST(map_->next_written_page(0, 1000)), 100U);
  EXPECT_EQ(MUST(map_->next_written_page(100, 1000)), 100U);
  EXPECT_EQ(MUST(map_->next_written_page(101, 1000)), 500U);
  EXPECT_EQ(MUST(map_->next_written_page(101, 400)), 400U);
  EXPECT_EQ(MUST(map_->next_written_page(501, 1000)), 1000U);
}

TEST_F(MapPagesTest, PagesThatAreCutOffAreGoneForGood) {
  write_page(3, 1, 10);
  write_page(4, 1, 10);
  MUST(run(map_->truncate_pages(4)));
  restart(true);
  MUST(open());
  EXPECT_EQ(read(3).word.epoch(), 10U);
  EXPECT_EQ(read(4).page.sequence, 0U);
}

// --- Intents.

TEST_F(MapFileTest, TheNewestIntentRecordCounts) {
  create();
  EXPECT_EQ(MUST(run(map_->read_intents())).newest_sequence(), 1U);  // made with the map
  for (std::uint64_t sequence = 1; sequence <= 20; ++sequence) {
    MUST(run(map_->write_intents(
        {.sequence = sequence,
         .epoch = 3,
         .regions = {{.region = static_cast<std::uint32_t>(sequence), .epoch = 3}}})));
  }
  EXPECT_EQ(MUST(run(map_->read_intents())).newest()->sequence, 20U);
  damage(intent_ring_offset + 20 % intent_slot_count * intent_slot_size + 30);
  EXPECT_EQ(MUST(run(map_->read_intents())).newest()->sequence, 19U);
  EXPECT_EQ(MUST(run(map_->read_intents())).newest()->regions.at(0).region, 19U);
}

TEST_F(MapFileTest, ACommitOfIntentsNeedsNoSpace) {
  create();
  machine_.host.set_space_max(machine_.host.space_used());
  IntentRecord record{
      .sequence = 1,
      .epoch = 1,
      .regions = std::vector<HotRegion>(intent_regions_max, {.region = 1, .epoch = 1})};
  for (; record.sequence <= 16; ++record.sequence) MUST(run(map_->write_intents(record)));
  EXPECT_EQ(MUST(run(map_->read_intents())).newest()->sequence, 16U);
}

}  // namespace
}  // namespace berth::disk
