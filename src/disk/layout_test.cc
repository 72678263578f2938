#include "disk/layout.h"

#include <functional>

#include <gtest/gtest.h>

namespace berth::disk {
namespace {

Id128 id_of(std::uint8_t first) {
  Id128 id;
  for (std::size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<std::byte>(first + i);
  return id;
}

const Id128 volume = id_of(0x10);
const Id128 other_volume = id_of(0x11);

/// Calls `accepts` with each bit of `bytes` flipped, one after the other; the bit for which it is
/// true.
std::optional<std::size_t> first_flip_accepted(MutableBytes bytes,
                                               const std::function<bool()>& accepts) {
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    const auto mask = static_cast<std::byte>(1U << bit % 8);
    bytes[bit / 8] ^= mask;
    const bool accepted = accepts();
    bytes[bit / 8] ^= mask;
    if (accepted) return bit;
  }
  return std::nullopt;
}

// --- Superblock.

class SuperblockTest : public testing::Test {
 protected:
  SuperblockTest() : sector_(sector_size) { encode_superblock(superblock_, sector_); }
  Superblock superblock_{.volume = volume, .block_size = 64 * KiB, .created_ms = 1'700'000'000'123};
  std::vector<std::byte> sector_;
};

TEST_F(SuperblockTest, WhatIsEncodedIsDecoded) {
  EXPECT_EQ(MUST(decode_superblock(sector_)), superblock_);
  superblock_.created_ms = -1;
  for (std::uint32_t size = block_size_min; size <= block_size_max; size *= 2) {
    superblock_.block_size = size;
    encode_superblock(superblock_, sector_);
    EXPECT_EQ(MUST(decode_superblock(sector_)), superblock_);
  }
}

TEST_F(SuperblockTest, NoFlippedBitIsAccepted) {
  EXPECT_EQ(first_flip_accepted(sector_, [&] { return decode_superblock(sector_).has_value(); }),
            std::nullopt);
}

TEST_F(SuperblockTest, APartOfASectorIsCorrupt) {
  for (const std::size_t length : {0, 7, 8, 55, 4095}) {
    const auto decoded = decode_superblock(Bytes(sector_).first(length));
    ASSERT_FALSE(decoded.has_value()) << length;
    EXPECT_EQ(decoded.error().kind(), ErrorKind::corrupt) << length;
  }
}

TEST_F(SuperblockTest, ABlockSizeThatCannotBeIsNotTakenForGood) {
  for (const std::uint32_t size : {0U, 1U, 2048U, 3U * 4096U, 4U * 1024U * 1024U, 0x80000000U}) {
    superblock_.block_size = size;
    encode_superblock(superblock_, sector_);
    EXPECT_FALSE(decode_superblock(sector_).has_value()) << size;
  }
}

// --- Pages.

class PageTest : public testing::Test {
 protected:
  PageTest() : words_(words_per_page), decoded_(words_per_page), sector_(page_size) {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      words_[i] = MapWord::of(static_cast<Epoch>(i * 7), static_cast<BlockState>(i % 3));
    }
    words_.back() = MapWord::of(epoch_max, BlockState::zero);
    encode_page(volume, {.page = 5, .sequence = 9}, words_, sector_);
  }
  std::optional<PageHeader> decode(const Id128& of, std::uint64_t page) {
    return decode_page(of, page, sector_, decoded_);
  }
  std::vector<MapWord> words_;
  std::vector<MapWord> decoded_;
  std::vector<std::byte> sector_;
};

TEST_F(PageTest, WhatIsEncodedIsDecoded) {
  const auto header = decode(volume, 5);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->page, 5U);
  EXPECT_EQ(header->sequence, 9U);
  EXPECT_EQ(decoded_, words_);
}

TEST_F(PageTest, FewerWordsLeaveZeros) {
  encode_page(volume, {.page = 5, .sequence = 1}, std::span(words_).first(3), sector_);
  ASSERT_TRUE(decode(volume, 5).has_value());
  EXPECT_EQ(decoded_[2], words_[2]);
  EXPECT_EQ(decoded_[3], MapWord{});
}

TEST_F(PageTest, NoFlippedBitIsAccepted) {
  EXPECT_EQ(first_flip_accepted(sector_, [&] { return decode(volume, 5).has_value(); }),
            std::nullopt);
}

TEST_F(PageTest, APageOfAnotherVolumeOrNumberIsNoPage) {
  EXPECT_FALSE(decode(other_volume, 5).has_value());
  EXPECT_FALSE(decode(volume, 4).has_value());
}

TEST_F(PageTest, SequenceZeroIsNeverWritten) {
  encode_page(volume, {.page = 5, .sequence = 0}, words_, sector_);
  EXPECT_FALSE(decode(volume, 5).has_value());
}

TEST_F(PageTest, ZerosAreNoPage) {
  sector_.assign(page_size, std::byte{0});
  EXPECT_FALSE(decode(volume, 5).has_value());
}

TEST_F(PageTest, APageWithAStateThatDoesNotExistIsNoPage) {
  for (const std::size_t at : {std::size_t{0}, words_per_page - 1}) {
    std::vector<MapWord> words = words_;
    words[at].raw |= 3U;
    encode_page(volume, {.page = 5, .sequence = 9}, words, sector_);
    EXPECT_FALSE(decode(volume, 5).has_value()) << at;
  }
}

TEST_F(PageTest, ATornPageIsNoPage) {
  std::vector<std::byte> older(page_size);
  std::vector<MapWord> other_words(words_per_page, MapWord::of(1, BlockState::present));
  encode_page(volume, {.page = 5, .sequence = 8}, other_words, older);
  for (unsigned pattern = 1; pattern < 255; ++pattern) {  // any sectors of the older one but all
    std::vector<std::byte> torn = sector_;
    for (unsigned i = 0; i < 8; ++i) {
      if ((pattern >> i & 1U) != 0)
        std::copy_n(older.begin() + i * 512, 512, torn.begin() + i * 512);
    }
    EXPECT_FALSE(decode_page(volume, 5, torn, decoded_).has_value()) << pattern;
  }
}

TEST(LayoutTest, VersionsOfAPageTakeItsSlotsInTurn) {
  EXPECT_EQ(page_slot_of(1), 0U);
  EXPECT_EQ(page_slot_of(2), 1U);
  EXPECT_EQ(page_slot_of(3), 0U);
}

TEST(LayoutTest, PagesFollowEachOtherInPairsOfSlots) {
  EXPECT_EQ(words_per_page, 1008U);
  EXPECT_EQ(page_of(1007), 0U);
  EXPECT_EQ(page_of(1008), 1U);
  EXPECT_EQ(page_count_for(0), 0U);
  EXPECT_EQ(page_count_for(1), 1U);
  EXPECT_EQ(page_count_for(1008), 1U);
  EXPECT_EQ(page_count_for(1009), 2U);
  EXPECT_EQ(page_slot_offset(0, 0), 128 * MiB);
  EXPECT_EQ(page_slot_offset(0, 1), 128 * MiB + 4096);
  EXPECT_EQ(page_slot_offset(3, 1), 128 * MiB + 7 * 4096);
}

TEST(LayoutTest, NothingOverlaps) {
  EXPECT_LE(superblock_offset + sector_size, superblock_copy_offset);
  EXPECT_LE(superblock_copy_offset + sector_size, intent_ring_offset);
  EXPECT_LE(intent_ring_offset + intent_slot_size * intent_slot_count, journal_offset_a);
  EXPECT_LE(journal_offset_a + journal_area_size, journal_offset_b);
  EXPECT_LE(journal_offset_b + journal_area_size, pages_offset);
}

// --- Intents.

class IntentRecordTest : public testing::Test {
 protected:
  IntentRecordTest() {
    for (std::uint32_t i = 0; i < 20; ++i)
      record_.regions.push_back({.region = i * 3, .epoch = i + 1});
    encode();
  }
  void encode() {
    slot_.assign(intent_record_size(record_.regions.size()), std::byte{0});
    encode_intents(volume, record_, slot_);
  }
  IntentRecord record_{.sequence = 77, .epoch = 20, .regions = {}};
  std::vector<std::byte> slot_;
};

TEST_F(IntentRecordTest, WhatIsEncodedIsDecoded) {
  const auto decoded = decode_intents(volume, slot_);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->sequence, 77U);
  EXPECT_EQ(decoded->epoch, 20U);
  EXPECT_EQ(decoded->regions, record_.regions);
}

TEST_F(IntentRecordTest, NoFlippedBitOfTheRecordIsAccepted) {
  const std::size_t length = intent_header_size + record_.regions.size() * sizeof(HotRegion);
  EXPECT_EQ(first_flip_accepted(MutableBytes(slot_).first(length),
                                [&] { return decode_intents(volume, slot_).has_value(); }),
            std::nullopt);
}

TEST_F(IntentRecordTest, ItTakesWholeSectors) {
  EXPECT_EQ(intent_record_size(0), 4096U);
  EXPECT_EQ(intent_record_size(504), 4096U);
  EXPECT_EQ(intent_record_size(505), 8192U);
  EXPECT_EQ(intent_record_size(intent_regions_max), intent_slot_size);
}

TEST_F(IntentRecordTest, TheFullHotSetFits) {
  record_.regions.assign(intent_regions_max, {.region = 1, .epoch = 2});
  encode();
  const auto decoded = decode_intents(volume, slot_);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->regions.size(), intent_regions_max);
  EXPECT_GE(intent_regions_max, hot_regions_default);
}

TEST_F(IntentRecordTest, ARegionOfAnEpochAboveTheRecordsOrTheLimitIsNone) {
  record_.regions[3].epoch = 21;
  encode();
  EXPECT_FALSE(decode_intents(volume, slot_).has_value());
  record_.epoch = epoch_max + 1;
  encode();
  EXPECT_FALSE(decode_intents(volume, slot_).has_value());
}

TEST_F(IntentRecordTest, ARecordOfAnotherVolumeIsNone) {
  EXPECT_FALSE(decode_intents(other_volume, slot_).has_value());
}

TEST_F(IntentRecordTest, ARecordThatIsLongerThanItsSlotIsNone) {
  EXPECT_FALSE(decode_intents(volume, Bytes(slot_).first(100)).has_value());
  EXPECT_FALSE(decode_intents(volume, Bytes(slot_).first(10)).has_value());
  EXPECT_FALSE(decode_intents(volume, {}).has_value());
  store_le<std::uint32_t>(slot_.data() + 4, UINT32_MAX);  // regions
  EXPECT_FALSE(decode_intents(volume, slot_).has_value());
}

// --- The ring.

class IntentRingTest : public testing::Test {
 protected:
  /// A ring into which records up to `newest` have gone, and then what `change` makes of a slot.
  static IntentRing ring_of(
      std::uint64_t newest,
      const std::function<void(std::uint64_t, std::vector<std::byte>&)>& change =
          [](std::uint64_t, std::vector<std::byte>&) {}) {
    std::vector<std::vector<std::byte>> slots(intent_slot_count,
                                              std::vector<std::byte>(sector_size));
    for (std::uint64_t sequence = 1; sequence <= newest; ++sequence) {
      encode_intents(volume, {.sequence = sequence, .epoch = 1, .regions = {}},
                     slots[sequence % intent_slot_count]);
    }
    IntentRing ring;
    for (std::uint64_t slot = 0; slot < intent_slot_count; ++slot) {
      change(slot, slots[slot]);
      ring.add(volume, slots[slot]);
    }
    return ring;
  }
};

TEST_F(IntentRingTest, AWholeRingLacksNothing) {
  for (std::uint64_t newest = 0; newest < 30; ++newest) {
    EXPECT_EQ(ring_of(newest).newest_sequence(), newest);
    EXPECT_FALSE(ring_of(newest).may_lack_newer(newest)) << newest;
    EXPECT_TRUE(ring_of(newest).may_lack_newer(newest + 1)) << newest;
  }
}

TEST_F(IntentRingTest, ASlotAfterTheNewestMayBeOfACommitThatWasCutShortAndNoOther) {
  for (std::uint64_t newest = 1; newest < 30; ++newest) {
    for (std::uint64_t damaged = 0; damaged < intent_slot_count; ++damaged) {
      if (damaged == newest % intent_slot_count) continue;
      const IntentRing ring = ring_of(newest, [&](std::uint64_t slot, auto& bytes) {
        if (slot == damaged) bytes[100] = bytes[0] = std::byte{7};
      });
      EXPECT_EQ(ring.newest_sequence(), newest);
      EXPECT_EQ(ring.may_lack_newer(1), damaged != (newest + 1) % intent_slot_count)
          << newest << ", slot " << damaged;
    }
  }
}

TEST_F(IntentRingTest, ARecordInAnotherSlotIsNone) {
  const IntentRing ring = ring_of(5, [](std::uint64_t slot, auto& bytes) {
    if (slot == 0) encode_intents(volume, {.sequence = 9, .epoch = 1, .regions = {}}, bytes);
  });
  EXPECT_EQ(ring.newest_sequence(), 5U);
  EXPECT_TRUE(ring.may_lack_newer(1));
}

}  // namespace
}  // namespace berth::disk
