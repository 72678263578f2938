#include "disk/live_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/sim_host.h"

namespace berth::disk {
namespace {

using testing::ElementsAre;

Id128 id_of(std::uint8_t first) {
  Id128 id;
  id.bytes.fill(static_cast<std::byte>(first));
  return id;
}

class LiveMapTest : public testing::Test {
 protected:
  LiveMap create() { return MUST(LiveMap::create(*store_, key_, 9)); }
  SimHost host_{1};
  std::unique_ptr<SharedMemoryStore> store_ = host_.shared_memory();
  LiveMap::Key key_{
      .volume = id_of(1), .session = id_of(2), .block_size = 64 * KiB, .page_count = 3};
};

TEST_F(LiveMapTest, ANewMapIsZeroAndClean) {
  const LiveMap map = create();
  EXPECT_EQ(map.epoch(), 9U);
  EXPECT_EQ(map.page_count(), 3U);
  EXPECT_EQ(map.words().size(), 3 * words_per_page);
  for (const MapWord word : map.words()) EXPECT_EQ(word, MapWord{});
  for (std::uint64_t page = 0; page < 3; ++page) EXPECT_EQ(map.page(page).dirt, clean_page);
}

TEST_F(LiveMapTest, ADeadProcessesMapIsAdoptedAsItWas) {
  {
    LiveMap map = create();
    map.set_word(5, MapWord::of(9, BlockState::present));
    map.set_word(1008, MapWord::of(3, BlockState::zero));
    map.page(1).sequence = 77;
    map.set_epoch(10);
  }
  const LiveMap map = MUST(LiveMap::adopt(*store_, key_));
  EXPECT_EQ(map.epoch(), 10U);
  EXPECT_EQ(map.word(5), MapWord::of(9, BlockState::present));
  EXPECT_EQ(map.word(1008), MapWord::of(3, BlockState::zero));
  EXPECT_EQ(map.page(0).epoch_max, 9U);
  EXPECT_EQ(map.page(1).epoch_max, 3U);
  EXPECT_EQ(map.page(1).sequence, 77U);
  EXPECT_NE(map.page(0).dirt, clean_page);
  EXPECT_EQ(map.page(2).dirt, clean_page);
}

TEST_F(LiveMapTest, AMapOfAnotherSessionVolumeSizeOrBootIsNotAdopted) {
  create();
  const auto refused = [this](const LiveMap::Key& key) {
    const auto adopted = LiveMap::adopt(*store_, key);
    return !adopted && adopted.error().kind() == ErrorKind::not_found;
  };
  LiveMap::Key key = key_;
  key.session = id_of(9);
  EXPECT_TRUE(refused(key));
  key = key_;
  key.volume = id_of(9);
  EXPECT_TRUE(refused(key));
  key = key_;
  key.page_count = 4;
  EXPECT_TRUE(refused(key));
  key = key_;
  key.block_size = 128 * KiB;
  EXPECT_TRUE(refused(key));
  EXPECT_FALSE(refused(key_));
  host_.power_loss();
  EXPECT_TRUE(refused(key_));
}

/// The store of another run of the machine's kernel that has the same files in it.
class OtherBoot final : public SharedMemoryStore {
 public:
  explicit OtherBoot(SharedMemoryStore& store) : store_(store) {}
  Result<std::unique_ptr<SharedMemory>> open(const std::string& name) override {
    return store_.open(name);
  }
  Result<std::unique_ptr<SharedMemory>> create(const std::string& name,
                                               std::uint64_t size) override {
    return store_.create(name, size);
  }
  Result<void> remove(const std::string& name) override { return store_.remove(name); }
  std::string boot_id() const override { return "another boot"; }

 private:
  SharedMemoryStore& store_;
};

TEST_F(LiveMapTest, AMapFromBeforeTheMachineRestartedIsNotAdopted) {
  create();
  OtherBoot other(*store_);
  EXPECT_EQ(LiveMap::adopt(other, key_).error().kind(), ErrorKind::not_found);
}

TEST_F(LiveMapTest, AHalfMadeOrShortMapIsNotAdopted) {
  {
    const LiveMap map = create();
    const std::string name = key_.volume.to_string() + ".3";
    const auto memory = MUST(store_->open(name));
    memory->bytes()[0] = std::byte{0};  // the magic number comes last
    EXPECT_EQ(LiveMap::adopt(*store_, key_).error().kind(), ErrorKind::not_found);
    MUST(store_->create(name, 8192));
  }
  EXPECT_EQ(LiveMap::adopt(*store_, key_).error().kind(), ErrorKind::not_found);
}

TEST_F(LiveMapTest, AMapCanBeGivenToAnotherSession) {
  create().set_session(id_of(8));
  EXPECT_FALSE(LiveMap::adopt(*store_, key_).has_value());
  key_.session = id_of(8);
  EXPECT_TRUE(LiveMap::adopt(*store_, key_).has_value());
}

TEST_F(LiveMapTest, ARemovedMapIsNotFound) {
  create();
  MUST(LiveMap::remove(*store_, key_.volume, key_.page_count));
  EXPECT_EQ(LiveMap::adopt(*store_, key_).error().kind(), ErrorKind::not_found);
}

TEST_F(LiveMapTest, ChangesOfEpochAndOfStateAreDirtOfTheirOwn) {
  LiveMap map = create();
  map.set_word(0, MapWord::of(1, BlockState::absent));
  map.set_word(words_per_page, MapWord::of(0, BlockState::present));
  map.set_word(2 * words_per_page, MapWord{});  // as it was
  EXPECT_EQ(map.page(0).dirt, dirty_epochs);
  EXPECT_EQ(map.page(1).dirt, dirty_states);
  EXPECT_EQ(map.page(2).dirt, clean_page);
  EXPECT_THAT(map.take_dirty(dirty_states), ElementsAre(1));
  EXPECT_THAT(map.take_dirty(dirty_epochs), ElementsAre(0));
}

TEST_F(LiveMapTest, WhatAFlushWasWritingWhenItsProcessDiedIsDirtyAgain) {
  {
    LiveMap map = create();
    map.page(1).dirt = dirty_states << capturing_shift;
    map.page(2).dirt = (dirty_epochs << capturing_shift) | dirty_states;
  }
  LiveMap map = MUST(LiveMap::adopt(*store_, key_));
  EXPECT_EQ(map.page(1).dirt, dirty_states);
  EXPECT_EQ(map.page(2).dirt, dirty_states | dirty_epochs);
  EXPECT_THAT(map.take_dirty(dirty_epochs | dirty_states), ElementsAre(1, 2));
}

TEST_F(LiveMapTest, APagesMaximumNeverFalls) {
  LiveMap map = create();
  map.set_word(3, MapWord::of(8, BlockState::present));
  map.set_word(4, MapWord::of(2, BlockState::present));
  map.set_word(3, MapWord::of(1, BlockState::present));
  EXPECT_EQ(map.page(0).epoch_max, 8U);
}

}  // namespace
}  // namespace berth::disk
