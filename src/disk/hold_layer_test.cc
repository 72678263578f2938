#include "disk/hold_layer.h"

#include <functional>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "disk/hold_format.h"
#include "testing/sim_machine.h"

namespace berth::disk {
namespace {

constexpr std::uint32_t block_size = 8 * KiB;
constexpr std::uint64_t block_count = 100'000;
constexpr LayerId layer_id = 7;

class HoldLayerTest : public testing::Test {
 protected:
  void SetUp() override {
    for (std::size_t i = 0; i < volume_.bytes.size(); ++i)
      volume_.bytes[i] = static_cast<std::byte>(i + 1);
  }
  HoldLayer::Identity identity(LayerId id = layer_id) {
    return {.volume = volume_, .id = id, .epoch = 4, .block_size = block_size};
  }
  template <typename T>
  T run(Task<T> task) {
    return machine_.loop.run_until_complete(std::move(task));
  }
  void create() {
    layer_.reset();
    layer_ = MUST(run(HoldLayer::create(machine_.loop, *machine_.directory, identity())));
    MUST(machine_.directory->sync());
  }
  Result<void> open() {
    layer_.reset();
    layer_ = TRY(run(HoldLayer::open(machine_.loop, *machine_.directory, identity(), block_count)));
    return {};
  }
  void restart(bool power_loss) {
    layer_.reset();
    machine_.restart(power_loss);
  }
  AlignedBuffer frame_of(char byte) const {
    AlignedBuffer frame(layer_->frame_size());
    std::memset(frame.data(), byte, frame.size());
    return frame;
  }
  Result<void> append(BlockIndex block, char byte, HeldKind kind = HeldKind::data,
                      bool durable = true) {
    AlignedBuffer frame = frame_of(byte);
    return run(layer_->append(block, MapWord::of(3, BlockState::present), kind, frame, durable));
  }
  /// The first byte of what is held; nothing for what is not, or not as bytes.
  std::optional<char> held(BlockIndex block) {
    const HeldBlock found = layer_->find(block);
    if (found.kind != HeldKind::data) return std::nullopt;
    const AlignedBuffer content(block_size);
    MUST(run(layer_->read(found, 0, content.bytes())));
    EXPECT_EQ(content.data()[0], content.data()[block_size - 1]);
    return static_cast<char>(content.data()[0]);
  }
  std::string file() { return HoldLayer::file_name(layer_id); }
  static std::uint64_t slot_offset(std::uint64_t slot) {
    return sector_size + slot * (sector_size + block_size);
  }
  void damage(std::uint64_t offset) { MUST(machine_.host.corrupt("vol/" + file(), offset, 1)); }
  std::uint64_t syncs() { return machine_.host.faults().hits(); }

  SimMachine machine_{1};
  Id128 volume_;
  std::shared_ptr<HoldLayer> layer_;
};

TEST_F(HoldLayerTest, WhatWasHeldIsFoundAlsoWhenOpenedAgain) {
  create();
  MUST(append(5, 'a'));
  MUST(append(99'999, 'b', HeldKind::zero));
  MUST(append(6, 'c', HeldKind::backing));
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(held(5), 'a');
    EXPECT_EQ(layer_->find(99'999).kind, HeldKind::zero);
    EXPECT_EQ(layer_->find(6).kind, HeldKind::backing);
    EXPECT_EQ(layer_->find(6).word, MapWord::of(3, BlockState::present));
    EXPECT_FALSE(layer_->holds(7));
    EXPECT_EQ(layer_->entries(), 3U);
    EXPECT_EQ(layer_->bytes_used(), block_size + 3 * sector_size);
    EXPECT_TRUE(layer_->touches_page(0));
    EXPECT_FALSE(layer_->touches_page(1));
    EXPECT_TRUE(layer_->touches_page(99'999 / words_per_page));
    MUST(open());
  }
}

TEST_F(HoldLayerTest, APartOfABlockIsReadWithoutTheRest) {
  create();
  MUST(append(5, 'a'));
  const AlignedBuffer part(4096);
  MUST(run(layer_->read(layer_->find(5), 4096, part.bytes())));
  EXPECT_EQ(static_cast<char>(part.data()[17]), 'a');
}

TEST_F(HoldLayerTest, TheFirstEntryOfABlockWins) {
  create();
  MUST(append(5, 'a'));
  MUST(append(6, 'b'));
  // A second one can only come from a mistake or from elsewhere; it must not hide the first.
  const auto opened = machine_.open(file());
  std::vector<std::byte> slot(sector_size);
  encode_hold_entry(volume_, layer_id, 2, {.block = 5, .word = {}, .kind = HeldKind::zero}, slot);
  MUST(machine_.write(*opened, slot_offset(2), slot));
  MUST(open());
  EXPECT_EQ(held(5), 'a');
  EXPECT_EQ(layer_->entries(), 2U);
}

TEST_F(HoldLayerTest, DurableEntriesSurvivePowerLoss) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    create();
    for (BlockIndex block = 0; block < 10; ++block)
      MUST(append(block, static_cast<char>('a' + block)));
    restart(true);
    MUST(open());
    for (BlockIndex block = 0; block < 10; ++block)
      EXPECT_EQ(held(block), static_cast<char>('a' + block));
  }
}

TEST_F(HoldLayerTest, ATornTailIsCutOffAndItsSlotsAreUsedAgain) {
  create();
  for (BlockIndex block = 0; block < 4; ++block) MUST(append(block, 'a'));
  damage(slot_offset(2) + 30);                // an entry
  damage(slot_offset(3) + sector_size + 30);  // its data
  MUST(open());
  EXPECT_EQ(held(1), 'a');
  EXPECT_FALSE(layer_->holds(2));
  EXPECT_FALSE(layer_->holds(3));
  MUST(append(10, 'x'));
  MUST(append(11, 'y'));
  MUST(append(12, 'z'));
  MUST(open());
  EXPECT_EQ(layer_->entries(), 5U);
  EXPECT_EQ(held(10), 'x');
  EXPECT_EQ(held(11), 'y');
  EXPECT_EQ(held(12), 'z');
  layer_->trim();
  const auto size = MUST(machine_.open(file())->size());
  EXPECT_EQ(size, slot_offset(5));  // two of the three took the torn slots
}

TEST_F(HoldLayerTest, AFileThatEndsWithinAnEntryLosesThatEntryOnly) {
  create();
  MUST(append(0, 'a'));
  MUST(append(1, 'b'));
  const auto opened = machine_.open(file());
  for (const std::uint64_t cut : {std::uint64_t{4096}, sector_size + block_size - 4096}) {
    MUST(opened->truncate(slot_offset(1) + cut));
    MUST(open());
    EXPECT_EQ(held(0), 'a');
    EXPECT_FALSE(layer_->holds(1)) << cut;
  }
  MUST(append(1, 'c'));
  MUST(open());
  EXPECT_EQ(held(1), 'c');
}

TEST_F(HoldLayerTest, TheFileReachesAheadOfItsEntriesAndALaterOpenUsesThatSpace) {
  create();
  for (BlockIndex block = 0; block < 300; ++block) MUST(append(block, 'a', HeldKind::zero, false));
  const std::uint64_t size = MUST(machine_.open(file())->size());
  EXPECT_GT(size, slot_offset(300));
  EXPECT_LE(size, slot_offset(300 + 256));
  MUST(open());
  EXPECT_EQ(layer_->entries(), 300U);
  const std::uint64_t free_slots = (size - slot_offset(300)) / layer_->frame_size();
  for (BlockIndex block = 300; block < 300 + free_slots; ++block)
    MUST(append(block, 'b', HeldKind::zero, false));
  EXPECT_EQ(MUST(machine_.open(file())->size()), size);
  MUST(append(300 + free_slots, 'c'));
  MUST(open());
  EXPECT_EQ(layer_->entries(), 301 + free_slots);
  layer_->trim();
  EXPECT_EQ(MUST(machine_.open(file())->size()), slot_offset(301 + free_slots));
}

TEST_F(HoldLayerTest, DamageBeforeTheTailIsCorrupt) {
  create();
  for (BlockIndex block = 0; block < 600; ++block) MUST(append(block, 'a', HeldKind::zero, false));
  layer_->trim();
  MUST(run(layer_->sync()));
  damage(slot_offset(87) + 30);  // 600 - 512 are before the window
  const auto opened = open();
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().kind(), ErrorKind::corrupt);
  EXPECT_NE(opened.error().message().find("slot 87 of 600"), std::string::npos)
      << opened.error().message();
}

TEST_F(HoldLayerTest, BytesThatDoNotFitTheirChecksumAreNotRead) {
  create();
  for (BlockIndex block = 0; block < 600; ++block)
    MUST(append(block, 'a', block == 3 ? HeldKind::data : HeldKind::zero, false));
  MUST(run(layer_->sync()));
  damage(slot_offset(3) + sector_size + 5000);
  MUST(open());
  const AlignedBuffer content(block_size);
  const auto read = run(layer_->read(layer_->find(3), 0, content.bytes()));
  ASSERT_FALSE(read.has_value());
  EXPECT_EQ(read.error().kind(), ErrorKind::corrupt);
}

TEST_F(HoldLayerTest, AnotherVolumesHoldIsCorrupt) {
  create();
  layer_.reset();
  HoldLayer::Identity other = identity();
  other.volume.bytes[0] ^= std::byte{1};
  const auto opened = run(HoldLayer::open(machine_.loop, *machine_.directory, other, block_count));
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().kind(), ErrorKind::corrupt);
  other = identity();
  other.block_size *= 2;
  EXPECT_FALSE(
      run(HoldLayer::open(machine_.loop, *machine_.directory, other, block_count)).has_value());
}

TEST_F(HoldLayerTest, AnEntryBeyondTheVolumeIsNone) {
  create();
  MUST(append(block_count - 1, 'a'));
  MUST(append(block_count, 'b'));
  MUST(open());
  EXPECT_TRUE(layer_->holds(block_count - 1));
  EXPECT_FALSE(layer_->holds(block_count));
}

TEST_F(HoldLayerTest, AMissingHoldIsNotFound) {
  const auto opened = open();
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().kind(), ErrorKind::not_found);
}

// --- Many at once.

Task<> append_one(HoldLayer& layer, BlockIndex block, AlignedBuffer& frame, Result<void>& result,
                  int& ended) {
  result = co_await layer.append(block, MapWord::of(1, BlockState::present), HeldKind::data, frame,
                                 true);
  ++ended;
}

TEST_F(HoldLayerTest, EntriesThatComeTogetherShareASync) {
  create();
  // A fault that fails nothing counts the syncs.
  machine_.host.faults().add(
      {.path = "vol/" + file(), .on = fault_on::sync, .error = 0, .times = UINT64_MAX});
  Gate gate(machine_.loop);
  std::vector<AlignedBuffer> frames;
  std::vector<Result<void>> results(64);
  for (int i = 0; i < 64; ++i) frames.push_back(frame_of(static_cast<char>(i)));
  int ended = 0;
  for (std::size_t i = 0; i < 64; ++i)
    gate.spawn(append_one(*layer_, i, frames[i], results[i], ended));
  run(gate.drained());
  EXPECT_EQ(ended, 64);
  for (const auto& result : results) EXPECT_TRUE(result.has_value());
  EXPECT_LT(syncs(), 64U);
  EXPECT_GE(syncs(), 1U);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(held(i), static_cast<char>(i));
}

TEST_F(HoldLayerTest, NeverMoreThanTheWindowIsUnderWay) {
  create();
  Gate gate(machine_.loop);
  constexpr std::size_t count = 700;
  std::vector<AlignedBuffer> frames;
  for (std::size_t i = 0; i < count; ++i) frames.push_back(frame_of('w'));
  std::vector<Result<void>> results(count);
  int ended = 0;
  for (std::size_t i = 0; i < count; ++i)
    gate.spawn(append_one(*layer_, i, frames[i], results[i], ended));
  EXPECT_LE(machine_.host.operations_in_flight(), 256U);
  run(gate.drained());
  EXPECT_EQ(layer_->entries(), count);
  MUST(open());
  EXPECT_EQ(layer_->entries(), count);
}

TEST_F(HoldLayerTest, AfterAPowerLossInTheMiddleWhatWasAcknowledgedIsThere) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    machine_.host.faults().clear();
    create();
    constexpr std::size_t count = 600;
    std::vector<AlignedBuffer> frames;
    for (std::size_t i = 0; i < count; ++i)
      frames.push_back(frame_of(static_cast<char>('a' + i % 26)));
    std::vector<Result<void>> results(count, failure(ErrorKind::internal, "not yet"));
    int ended = 0;
    Gate gate(machine_.loop);
    for (std::size_t i = 0; i < count; ++i)
      gate.spawn(append_one(*layer_, i, frames[i], results[i], ended));
    (void)machine_.loop.run_at_most(seed * 97, gate.drained());
    gate.abandon();
    restart(seed % 2 == 0);
    const auto opened = open();
    ASSERT_TRUE(opened.has_value()) << "seed " << seed << ": " << opened.error().message();
    for (std::size_t i = 0; i < count; ++i) {
      const auto found = held(i);
      if (results[i]) ASSERT_TRUE(found.has_value()) << "seed " << seed << ", block " << i;
      if (found) ASSERT_EQ(*found, static_cast<char>('a' + i % 26));
    }
    // It goes on.
    for (std::size_t i = count; i < count + 20; ++i) MUST(append(i, 'n'));
    MUST(open());
    for (std::size_t i = count; i < count + 20; ++i) ASSERT_EQ(held(i), 'n');
    layer_.reset();
    machine_.restart(false);
  }
}

// --- Errors.

TEST_F(HoldLayerTest, AFullDiskHoldsNothingAndLosesNothing) {
  create();
  MUST(append(0, 'a'));
  machine_.host.set_space_max(machine_.host.space_used() + 4096);
  const auto refused = append(1, 'b');
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().kind(), ErrorKind::no_space);
  EXPECT_FALSE(layer_->holds(1));
  EXPECT_EQ(held(0), 'a');
  machine_.host.set_space_max(UINT64_MAX);
  MUST(append(1, 'c'));
  MUST(append(2, 'd'));
  MUST(open());
  EXPECT_EQ(held(0), 'a');
  EXPECT_EQ(held(1), 'c');
  EXPECT_EQ(held(2), 'd');
}

TEST_F(HoldLayerTest, AFailedSyncIsForGood) {
  create();
  MUST(append(0, 'a'));
  machine_.host.faults().add({.path = "vol/" + file(), .on = fault_on::sync});
  EXPECT_EQ(append(1, 'b').error().kind(), ErrorKind::io_error);
  EXPECT_FALSE(layer_->holds(1));
  EXPECT_EQ(append(2, 'c').error().kind(), ErrorKind::io_error);
  EXPECT_EQ(run(layer_->sync()).error().kind(), ErrorKind::io_error);
  EXPECT_EQ(held(0), 'a');
  MUST(append(3, 'd', HeldKind::data, false));  // one that need not be durable
}

// --- The format.

TEST(HoldFormatTest, NoFlippedBitOfAHeaderOrAnEntryIsAccepted) {
  Id128 volume;
  volume.bytes.fill(std::byte{3});
  std::vector<std::byte> sector(sector_size);
  encode_hold_header({.volume = volume, .layer = 1, .block_size = block_size}, sector);
  for (std::size_t bit = 0; bit < 56 * 8; ++bit) {
    sector[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    EXPECT_FALSE(decode_hold_header(sector).has_value()) << bit;
    sector[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
  }
  EXPECT_TRUE(decode_hold_header(sector).has_value());

  const HoldEntry entry{.block = 9,
                        .word = MapWord::of(8, BlockState::present),
                        .kind = HeldKind::data,
                        .data_checksum = 7};
  encode_hold_entry(volume, 1, 2, entry, sector);
  for (std::size_t bit = 0; bit < 72 * 8; ++bit) {
    sector[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    EXPECT_FALSE(decode_hold_entry(volume, 1, 2, sector).has_value()) << bit;
    sector[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
  }
  const auto decoded = decode_hold_entry(volume, 1, 2, sector);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->block, 9U);
  EXPECT_EQ(decoded->word, entry.word);
  EXPECT_EQ(decoded->kind, HeldKind::data);
  EXPECT_EQ(decoded->data_checksum, 7U);
  EXPECT_FALSE(decode_hold_entry(volume, 1, 3, sector).has_value());
  EXPECT_FALSE(decode_hold_entry(volume, 2, 2, sector).has_value());
  for (std::size_t length = 0; length < 72; ++length) {
    EXPECT_FALSE(decode_hold_entry(volume, 1, 2, Bytes(sector).first(length)).has_value());
  }
}

TEST(HoldFormatTest, LayersAreFilesOfSixteenHexadecimalDigits) {
  EXPECT_EQ(HoldLayer::file_name(0x1f), "000000000000001f");
}

}  // namespace
}  // namespace berth::disk
