#include "disk/journal.h"

#include <algorithm>
#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/checksum.h"
#include "disk/layout.h"
#include "testing/sim_random.h"

namespace berth::disk {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

Id128 id_of(std::uint8_t first) {
  Id128 id;
  id.bytes.fill(static_cast<std::byte>(first));
  return id;
}

const Id128 volume = id_of(0x42);

/// Every kind of event, every field different from its default.
std::vector<JournalEvent> all_events() {
  return {
      CutEvent{.epoch = 7,
               .nonce = id_of(1),
               .checkpoint = "checkpoint",
               .refpoint = "reference point",
               .durability = Durability::volatile_,
               .layer = 3,
               .created_ms = -5,
               .group = id_of(2)},
      ReleaseEvent{.checkpoint = "a"},
      ConvertEvent{.checkpoint = "a", .refpoint = "b"},
      DeleteRefpointEvent{.refpoint = "b"},
      SettleEvent{.group = id_of(3), .committed = true},
      OpenEvent{.kind = OpenKind::power_loss,
                .epoch = 9,
                .session = id_of(4),
                .intents_before = 5,
                .recovered = 8,
                .vouched_since = 7,
                .void_reason = VoidReason::pages_damaged},
      CloseEvent{
          .epoch = 10,
          .data =
              {.size = 1, .inode = 2, .device = 3, .modified_ns = -4, .device_id = "wwn-0x5000"},
          .page_versions = 12},
      ResizeEvent{.size = 2 * MiB, .old_size = MiB, .epoch = 11, .finished = true},
      RevertEvent{.checkpoint = "c", .finished = true},
      LostEvent{.checkpoints = {"x", "", "z"}},
      LayerEvent{.layer = 12, .epoch = 13, .present = true},
      IdentityEvent{
          .volume = id_of(6),
          .data = {.size = 1, .inode = 2, .device = 3, .modified_ns = -4, .device_id = "dm:x"},
          .vouched_since = 14,
          .void_reason = VoidReason::copied,
          .lost = true},
  };
}

VolumeState full_state() {
  VolumeState state;
  state.volume = id_of(41);
  state.size = 5 * MiB;
  state.backing = "volume:base@c";
  state.backing_limit = 4 * MiB;
  state.epoch = 100;
  state.session = id_of(5);
  state.intents_before = 6;
  state.clean = true;
  state.data = {.size = 1, .inode = 2, .device = 3, .modified_ns = 4, .device_id = "id"};
  state.recovered = 7;
  state.vouched_since = 8;
  state.page_versions = 9;
  state.void_reason = VoidReason::copied;
  state.next_layer = 9;
  state.checkpoints = {{.name = "c1",
                        .epoch = 10,
                        .nonce = id_of(11),
                        .durability = Durability::volatile_,
                        .size = 12,
                        .created_ms = 13,
                        .group = id_of(14),
                        .provisional = true,
                        .lost = true},
                       {.name = "c2", .epoch = 20, .nonce = {}, .size = MiB, .group = {}}};
  state.refpoints["r"] = {.name = "r",
                          .epoch = 30,
                          .nonce = id_of(31),
                          .size = 32,
                          .created_ms = 33,
                          .group = id_of(34),
                          .provisional = true};
  state.layers = {{.id = 40, .epoch = 41}, {.id = 42, .epoch = 43}};
  state.pending_resize = ResizeEvent{.size = 50, .old_size = 51, .epoch = 52};
  state.pending_revert = RevertEvent{.checkpoint = "c2"};
  return state;
}

std::vector<std::byte> bytes_of(const VolumeState& state) { return encode_state(volume, 1, state); }

// --- Records.

TEST(JournalRecordTest, EveryEventIsWhatItWasAfterARoundTrip) {
  for (const JournalEvent& event : all_events()) {
    const auto record = encode_event(volume, 3, 4, event);
    EXPECT_EQ(record.size() % sector_size, 0U);
    const auto decoded = MUST(decode_record(volume, record));
    EXPECT_EQ(decoded.generation, 3U);
    EXPECT_EQ(decoded.sequence, 4U);
    ASSERT_TRUE(std::holds_alternative<JournalEvent>(decoded.content));
    const auto& again = std::get<JournalEvent>(decoded.content);
    EXPECT_EQ(again.index(), event.index());
    EXPECT_EQ(encode_event(volume, 3, 4, again), record) << event.index();
  }
  EXPECT_EQ(all_events().size(), std::variant_size_v<JournalEvent>);
}

TEST(JournalRecordTest, AStateIsWhatItWasAfterARoundTrip) {
  const auto record = bytes_of(full_state());
  const auto decoded = MUST(decode_record(volume, record));
  EXPECT_EQ(decoded.sequence, 0U);
  const auto& state = std::get<VolumeState>(decoded.content);
  EXPECT_EQ(bytes_of(state), record);
  EXPECT_EQ(state.backing, "volume:base@c");
  EXPECT_EQ(state.checkpoints.at(0).nonce, id_of(11));
  EXPECT_TRUE(state.checkpoints.at(0).lost);
  EXPECT_EQ(state.refpoints.at("r").epoch, 30U);
  EXPECT_EQ(state.layers.at(1).epoch, 43U);
  EXPECT_EQ(state.pending_resize->old_size, 51U);
  EXPECT_EQ(state.pending_revert->checkpoint, "c2");
}

/// Anything that a record can hold, at and between its limits.
class AnyRecord {
 public:
  explicit AnyRecord(std::uint64_t seed) : random_(seed) {}

  VolumeState state() {
    VolumeState state;
    state.size = number();
    state.backing = text();
    state.backing_limit = number();
    state.epoch = epoch();
    state.session = id();
    state.intents_before = number();
    state.clean = flag();
    state.data = identity();
    state.page_versions = number();
    state.recovered = epoch();
    state.vouched_since = epoch();
    state.void_reason = static_cast<VoidReason>(random_.below(5));
    state.next_layer = number();
    // Few things with short names take the least space that a count can stand for.
    const std::uint64_t checkpoints = count();
    for (std::uint64_t i = 0; i < checkpoints; ++i) {
      state.checkpoints.push_back({.name = text(),
                                   .epoch = epoch(),
                                   .nonce = id(),
                                   .durability = durability(),
                                   .size = number(),
                                   .created_ms = time(),
                                   .group = id(),
                                   .provisional = flag(),
                                   .lost = flag()});
    }
    const std::uint64_t refpoints = count();
    for (std::uint64_t i = 0; i < refpoints; ++i) {
      const std::string name = text();
      state.refpoints[name] = {.name = name,
                               .epoch = epoch(),
                               .nonce = id(),
                               .size = number(),
                               .created_ms = time(),
                               .group = id(),
                               .provisional = flag()};
    }
    const std::uint64_t layers = count();
    for (std::uint64_t i = 0; i < layers; ++i)
      state.layers.push_back({.id = number(), .epoch = epoch()});
    if (flag()) {
      state.pending_resize =
          ResizeEvent{.size = number(), .old_size = number(), .epoch = epoch(), .finished = flag()};
    }
    if (flag()) state.pending_revert = RevertEvent{.checkpoint = text(), .finished = flag()};
    return state;
  }

  JournalEvent event() {
    switch (random_.below(std::variant_size_v<JournalEvent>)) {
      case 0:
        return CutEvent{.epoch = epoch(),
                        .nonce = id(),
                        .checkpoint = text(),
                        .refpoint = text(),
                        .durability = durability(),
                        .layer = number(),
                        .created_ms = time(),
                        .group = id()};
      case 1: return ReleaseEvent{.checkpoint = text()};
      case 2: return ConvertEvent{.checkpoint = text(), .refpoint = text()};
      case 3: return DeleteRefpointEvent{.refpoint = text()};
      case 4: return SettleEvent{.group = id(), .committed = flag()};
      case 5:
        return OpenEvent{.kind = static_cast<OpenKind>(random_.below(3)),
                         .epoch = epoch(),
                         .session = id(),
                         .intents_before = number(),
                         .recovered = epoch(),
                         .vouched_since = epoch(),
                         .void_reason = static_cast<VoidReason>(random_.below(5))};
      case 6: return CloseEvent{.epoch = epoch(), .data = identity(), .page_versions = number()};
      case 7:
        return ResizeEvent{
            .size = number(), .old_size = number(), .epoch = epoch(), .finished = flag()};
      case 8: return RevertEvent{.checkpoint = text(), .finished = flag()};
      case 9: {
        LostEvent lost;
        const std::uint64_t names = count();
        for (std::uint64_t i = 0; i < names; ++i) lost.checkpoints.push_back(text());
        return lost;
      }
      default: return LayerEvent{.layer = number(), .epoch = epoch(), .present = flag()};
    }
  }

 private:
  bool flag() { return random_.one_in(2); }
  std::uint64_t number() {
    return random_.one_in(4) ? UINT64_MAX : random_.one_in(4) ? 0 : random_.below(UINT64_MAX);
  }
  std::int64_t time() { return static_cast<std::int64_t>(number()); }
  Epoch epoch() { return static_cast<Epoch>(random_.one_in(4) ? epoch_max : random_.below(100)); }
  Id128 id() { return random_.one_in(4) ? Id128{} : random_.id(); }
  Durability durability() { return flag() ? Durability::durable : Durability::volatile_; }
  std::uint64_t count() { return random_.one_in(3) ? 0 : random_.between(1, 40); }
  std::string text() {
    const std::uint64_t length = random_.one_in(50)  ? 4096
                                 : random_.one_in(4) ? 0
                                 : random_.one_in(2) ? 1
                                                     : random_.between(2, name_length_max);
    return std::string(length, static_cast<char>(random_.between('a', 'z')));
  }
  FileIdentity identity() {
    return {.size = number(),
            .inode = number(),
            .device = number(),
            .modified_ns = time(),
            .device_id = text()};
  }
  SimRandom random_;
};

TEST(JournalRecordTest, WhateverCanBeWrittenIsReadAgain) {
  for (std::uint64_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(seed);
    AnyRecord any(seed);
    const auto state = bytes_of(any.state());
    const auto decoded_state = decode_record(volume, state);
    ASSERT_TRUE(decoded_state.has_value()) << decoded_state.error().message();
    ASSERT_EQ(bytes_of(std::get<VolumeState>(decoded_state->content)), state);
    const auto event = encode_event(volume, 3, 4, any.event());
    const auto decoded_event = decode_record(volume, event);
    ASSERT_TRUE(decoded_event.has_value()) << decoded_event.error().message();
    ASSERT_EQ(encode_event(volume, 3, 4, std::get<JournalEvent>(decoded_event->content)), event);
  }
}

TEST(JournalRecordTest, ManyPointsOfTheShortestNamesAreReadAgain) {
  VolumeState state;
  state.size = MiB;
  for (char name = 'a'; name <= 'z'; ++name) {
    state.checkpoints.push_back({.name = {name}, .nonce = {}, .group = {}, .lost = true});
    const auto record = bytes_of(state);
    const auto decoded = decode_record(volume, record);
    ASSERT_TRUE(decoded.has_value()) << name << ": " << decoded.error().message();
  }
}

/// The record with another byte at `offset`, and its checksum made good again.
std::vector<std::byte> with_byte(std::vector<std::byte> record, std::size_t offset,
                                 std::uint8_t value) {
  const std::uint64_t length = peek_record(volume, record)->length;
  record[offset] = std::byte{value};
  store_le<std::uint64_t>(record.data() + 8, 0);
  store_le<std::uint64_t>(record.data() + 8, checksum64(Bytes(record).first(length)));
  return record;
}

TEST(JournalRecordTest, ARecordOfAnotherVersionIsNotSupported) {
  const auto record = encode_event(volume, 3, 4, ReleaseEvent{"a"});
  for (const int version : {0, 1, 2, 4, 255}) {
    const auto decoded =
        decode_record(volume, with_byte(record, 6, static_cast<std::uint8_t>(version)));
    ASSERT_FALSE(decoded.has_value());
    EXPECT_EQ(decoded.error().kind(), ErrorKind::unsupported);
  }
}

TEST(JournalRecordTest, AnOpeningOfAKindThatDoesNotExistIsCorrupt) {
  const auto record = encode_event(volume, 3, 4, OpenEvent{.session = {}});
  EXPECT_TRUE(decode_record(volume, with_byte(record, journal_header_size, 2)).has_value());
  const auto decoded = decode_record(volume, with_byte(record, journal_header_size, 3));
  ASSERT_FALSE(decoded.has_value());
  EXPECT_EQ(decoded.error().kind(), ErrorKind::corrupt);
}

TEST(JournalRecordTest, NoFlippedBitOfARecordIsAccepted) {
  std::vector<std::vector<std::byte>> records{bytes_of(full_state())};
  for (const JournalEvent& event : all_events())
    records.push_back(encode_event(volume, 3, 4, event));
  for (auto& record : records) {
    const std::uint64_t length = peek_record(volume, record)->length;
    for (std::size_t bit = 0; bit < length * 8; ++bit) {
      const auto mask = static_cast<std::byte>(1U << bit % 8);
      record[bit / 8] ^= mask;
      ASSERT_FALSE(decode_record(volume, record).has_value()) << "bit " << bit;
      record[bit / 8] ^= mask;
    }
  }
}

TEST(JournalRecordTest, ARecordThatIsCutShortIsCorrupt) {
  const auto record = bytes_of(full_state());
  const std::uint64_t length = peek_record(volume, record)->length;
  for (std::size_t size = 0; size < length; ++size) {
    const auto decoded = decode_record(volume, Bytes(record).first(size));
    ASSERT_FALSE(decoded.has_value()) << size;
    ASSERT_EQ(decoded.error().kind(), ErrorKind::corrupt) << size;
  }
  EXPECT_TRUE(
      decode_record(volume, Bytes(record).first(length)).has_value());  // the padding says nothing
}

TEST(JournalRecordTest, ARecordOfAnotherVolumeIsCorrupt) {
  const auto record = encode_event(volume, 3, 4, ReleaseEvent{"a"});
  EXPECT_FALSE(peek_record(id_of(1), record).has_value());
  EXPECT_FALSE(decode_record(id_of(1), record).has_value());
}

TEST(JournalRecordTest, TenThousandReferencePointsFitInAState) {
  VolumeState state;
  state.size = MiB;
  for (Epoch i = 0; i < 10'000; ++i) {
    const std::string name = fmt::format("{:0>128}", i);
    state.refpoints[name] = {
        .name = name, .epoch = i, .nonce = id_of(static_cast<std::uint8_t>(i)), .group = {}};
  }
  const auto record = bytes_of(state);
  EXPECT_LT(record.size(), journal_area_size / 2);
  const auto decoded = MUST(decode_record(volume, record));
  EXPECT_EQ(std::get<VolumeState>(decoded.content).refpoints.size(), 10'000U);
}

// --- What events mean.

class VolumeStateTest : public testing::Test {
 protected:
  VolumeStateTest() {
    state_.size = 10 * MiB;
    apply(OpenEvent{.kind = OpenKind::clean, .epoch = 1, .session = id_of(9)});
  }
  void apply(const JournalEvent& event) {
    const auto applied = state_.apply(event);
    ASSERT_TRUE(applied.has_value()) << applied.error().message();
  }
  void refuses(const JournalEvent& event) {
    const auto before = bytes_of(state_);
    const auto applied = state_.apply(event);
    ASSERT_FALSE(applied.has_value());
    EXPECT_EQ(applied.error().kind(), ErrorKind::corrupt);
    EXPECT_EQ(bytes_of(state_), before) << "a refused event has changed something";
  }
  /// A cut with a checkpoint and a layer, or without one.
  void checkpoint(const std::string& name, Durability durability = Durability::durable,
                  Id128 group = {}) {
    apply(CutEvent{.epoch = state_.epoch,
                   .nonce = id_of(static_cast<std::uint8_t>(state_.epoch)),
                   .checkpoint = name,
                   .refpoint = {},
                   .durability = durability,
                   .layer = state_.next_layer,
                   .group = group});
  }
  void refpoint(const std::string& name, Id128 group = {}) {
    apply(CutEvent{.epoch = state_.epoch,
                   .nonce = id_of(1),
                   .checkpoint = {},
                   .refpoint = name,
                   .group = group});
  }
  std::vector<LayerId> layers() {
    std::vector<LayerId> ids;
    for (const Layer& layer : state_.layers) ids.push_back(layer.id);
    return ids;
  }
  std::vector<std::string> lost() {
    std::vector<std::string> names;
    for (const Checkpoint& one : state_.checkpoints) {
      if (one.lost) names.push_back(one.name);
    }
    return names;
  }
  VolumeState state_;
};

TEST_F(VolumeStateTest, ACutMakesWhatItNamesAndEndsItsEpoch) {
  apply(CutEvent{.epoch = 4,
                 .nonce = id_of(7),
                 .checkpoint = "c",
                 .refpoint = "r",
                 .durability = Durability::volatile_,
                 .layer = 5,
                 .created_ms = 6,
                 .group = {}});
  EXPECT_EQ(state_.epoch, 5U);
  EXPECT_EQ(state_.next_layer, 6U);
  ASSERT_NE(state_.find_checkpoint("c"), nullptr);
  const Checkpoint& one = *state_.find_checkpoint("c");
  EXPECT_EQ(one.epoch, 4U);
  EXPECT_EQ(one.nonce, id_of(7));
  EXPECT_EQ(one.size, 10 * MiB);
  EXPECT_EQ(one.created_ms, 6);
  EXPECT_FALSE(one.provisional);
  ASSERT_NE(state_.find_refpoint("r"), nullptr);
  EXPECT_EQ(state_.find_refpoint("r")->nonce, id_of(7));
  EXPECT_EQ(state_.layers.at(0).epoch, 4U);
}

TEST_F(VolumeStateTest, ALayerStaysWhileACheckpointAtOrBeforeItRemains) {
  checkpoint("a");
  checkpoint("b");
  checkpoint("c");
  EXPECT_THAT(layers(), ElementsAre(1, 2, 3));
  apply(ReleaseEvent{"b"});
  EXPECT_THAT(layers(), ElementsAre(1, 2, 3));  // "a" needs what was held in b's layer
  apply(ReleaseEvent{"a"});
  EXPECT_THAT(layers(), ElementsAre(3));
  apply(ReleaseEvent{"c"});
  EXPECT_THAT(layers(), IsEmpty());
}

TEST_F(VolumeStateTest, CheckpointsGoInAnyOrderAndTakeEveryLayerWithThem) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SimRandom random(seed);
    state_ = VolumeState{};
    std::vector<std::string> names;
    for (int i = 0; i < 8; ++i) {
      names.push_back(fmt::format("c{}", i));
      checkpoint(names.back());
      if (random.one_in(3)) refpoint(fmt::format("r{}", i));
    }
    random.shuffle(names);
    for (const std::string& name : names) {
      if (random.one_in(2)) {
        apply(ReleaseEvent{name});
      } else {
        apply(ConvertEvent{.checkpoint = name, .refpoint = name});
      }
      // Rule 7, said the other way: exactly the layers at or after the oldest that is left.
      const std::size_t expected =
          state_.checkpoints.empty()
              ? 0
              : static_cast<std::size_t>(8 - (state_.checkpoints.front().name[1] - '0'));
      ASSERT_EQ(state_.layers.size(), expected) << "seed " << seed;
    }
  }
}

TEST_F(VolumeStateTest, ALayerIsDurableIfADurableCheckpointIsAtOrBeforeIt) {
  checkpoint("volatile", Durability::volatile_);  // epoch 1
  checkpoint("durable");                          // epoch 2
  checkpoint("later", Durability::volatile_);     // epoch 3
  EXPECT_FALSE(state_.layer_is_durable(1));
  EXPECT_TRUE(state_.layer_is_durable(2));
  EXPECT_TRUE(state_.layer_is_durable(3));
  apply(ReleaseEvent{"durable"});
  EXPECT_FALSE(state_.layer_is_durable(3));
}

TEST_F(VolumeStateTest, ConvertingKeepsWhoItIs) {
  checkpoint("c");
  const Checkpoint before = *state_.find_checkpoint("c");
  apply(ConvertEvent{.checkpoint = "c", .refpoint = "r"});
  EXPECT_EQ(state_.find_checkpoint("c"), nullptr);
  ASSERT_NE(state_.find_refpoint("r"), nullptr);
  EXPECT_EQ(state_.find_refpoint("r")->epoch, before.epoch);
  EXPECT_EQ(state_.find_refpoint("r")->nonce, before.nonce);
  EXPECT_EQ(state_.find_refpoint("r")->size, before.size);
}

TEST_F(VolumeStateTest, AGroupsPointsAreRealWhenItHasCommittedAndGoneWhenItHasNot) {
  checkpoint("mine", Durability::durable, id_of(1));
  refpoint("mine-too", id_of(1));
  checkpoint("theirs", Durability::durable, id_of(2));
  EXPECT_TRUE(state_.find_checkpoint("mine")->provisional);
  apply(SettleEvent{.group = id_of(1), .committed = true});
  EXPECT_FALSE(state_.find_checkpoint("mine")->provisional);
  EXPECT_FALSE(state_.find_refpoint("mine-too")->provisional);
  EXPECT_TRUE(state_.find_checkpoint("theirs")->provisional);
  apply(SettleEvent{.group = id_of(2), .committed = false});
  EXPECT_EQ(state_.find_checkpoint("theirs"), nullptr);
  apply(SettleEvent{.group = id_of(1), .committed = false});  // once committed, always
  EXPECT_NE(state_.find_checkpoint("mine"), nullptr);
}

TEST_F(VolumeStateTest, ARefusedGroupTakesItsLayers) {
  checkpoint("mine", Durability::durable, id_of(1));
  EXPECT_THAT(layers(), ElementsAre(1));
  apply(SettleEvent{.group = id_of(1), .committed = false});
  EXPECT_THAT(layers(), IsEmpty());
}

TEST_F(VolumeStateTest, APowerLossCostsVolatileCheckpointsAndExactAnswers) {
  checkpoint("volatile", Durability::volatile_);
  checkpoint("durable");
  refpoint("r");
  apply(OpenEvent{.kind = OpenKind::power_loss,
                  .epoch = 9,
                  .session = id_of(2),
                  .intents_before = 3,
                  .recovered = 8});
  EXPECT_THAT(lost(), ElementsAre("volatile"));
  EXPECT_THAT(layers(), ElementsAre(2));
  EXPECT_EQ(state_.recovered, 8U);
  EXPECT_EQ(state_.epoch, 9U);
  EXPECT_EQ(state_.vouched_since, 0U);
  EXPECT_EQ(state_.session, id_of(2));
  EXPECT_EQ(state_.intents_before, 3U);
}

TEST_F(VolumeStateTest, AnotherDataFileVoidsEverything) {
  checkpoint("durable");
  refpoint("r");
  apply(CloseEvent{.epoch = 3, .data = {}});
  EXPECT_TRUE(state_.clean);
  apply(OpenEvent{.kind = OpenKind::foreign_data,
                  .epoch = 4,
                  .session = id_of(2),
                  .vouched_since = 4,
                  .void_reason = VoidReason::data_file_changed});
  EXPECT_FALSE(state_.clean);
  EXPECT_THAT(lost(), ElementsAre("durable"));
  EXPECT_THAT(layers(), IsEmpty());
  EXPECT_EQ(state_.vouched_since, 4U);
  EXPECT_LT(state_.find_refpoint("r")->epoch, state_.vouched_since);
  refpoint("next");
  EXPECT_GE(state_.find_refpoint("next")->epoch, state_.vouched_since);
}

TEST_F(VolumeStateTest, LosingACheckpointLosesItsLayersAndNoOthers) {
  checkpoint("a", Durability::volatile_);
  checkpoint("b");
  apply(LostEvent{{"a", "nobody"}});
  EXPECT_THAT(lost(), ElementsAre("a"));
  EXPECT_THAT(layers(), ElementsAre(2));
  apply(ReleaseEvent{"a"});
  apply(LostEvent{{"b"}});
  EXPECT_THAT(layers(), IsEmpty());
}

TEST_F(VolumeStateTest, ARevertPendsUntilItIsFinishedAndItsSourceIsDurableFromThenOn) {
  checkpoint("c", Durability::volatile_);
  apply(RevertEvent{.checkpoint = "c", .finished = false});
  ASSERT_TRUE(state_.pending_revert.has_value());
  EXPECT_TRUE(state_.layer_is_durable(1));
  apply(RevertEvent{.checkpoint = "c", .finished = true});
  EXPECT_FALSE(state_.pending_revert.has_value());
}

TEST_F(VolumeStateTest, AResizeCountsFromItsDecision) {
  state_.backing_limit = 8 * MiB;
  apply(ResizeEvent{.size = 4 * MiB, .old_size = 10 * MiB, .epoch = 1, .finished = false});
  EXPECT_EQ(state_.size, 4 * MiB);
  EXPECT_EQ(state_.backing_limit, 4 * MiB);
  EXPECT_TRUE(state_.pending_resize.has_value());
  apply(ResizeEvent{.size = 4 * MiB, .old_size = 10 * MiB, .epoch = 1, .finished = true});
  EXPECT_FALSE(state_.pending_resize.has_value());
  apply(ResizeEvent{.size = 20 * MiB, .old_size = 4 * MiB, .epoch = 1, .finished = false});
  EXPECT_EQ(state_.backing_limit, 4 * MiB);  // for good
}

TEST_F(VolumeStateTest, ALayerAnnouncedForOlderCheckpointsStaysWithoutItsCut) {
  checkpoint("old");
  apply(LayerEvent{.layer = 7, .epoch = 2, .present = true});
  EXPECT_THAT(layers(), ElementsAre(1, 7));
  EXPECT_EQ(state_.next_layer, 8U);
  apply(CutEvent{
      .epoch = 2, .nonce = {}, .checkpoint = "new", .refpoint = {}, .layer = 7, .group = {}});
  EXPECT_THAT(layers(), ElementsAre(1, 7));  // the same
  apply(LayerEvent{.layer = 8, .epoch = 3, .present = true});
  apply(LayerEvent{.layer = 8, .epoch = 3, .present = false});
  EXPECT_THAT(layers(), ElementsAre(1, 7));
}

TEST_F(VolumeStateTest, WhatCannotFollowIsCorruptAndChangesNothing) {
  checkpoint("c");
  refpoint("r");
  refuses(ReleaseEvent{"nobody"});
  refuses(ConvertEvent{.checkpoint = "nobody", .refpoint = "x"});
  refuses(ConvertEvent{.checkpoint = "c", .refpoint = "r"});
  refuses(DeleteRefpointEvent{"nobody"});
  refuses(RevertEvent{.checkpoint = "nobody", .finished = false});
  refuses(ResizeEvent{.size = 0, .old_size = MiB, .epoch = 1, .finished = false});
  refuses(ResizeEvent{.size = volume_size_max + 1, .old_size = MiB, .epoch = 1, .finished = false});
  refuses(CutEvent{
      .epoch = 5, .nonce = {}, .checkpoint = "c", .refpoint = {}, .layer = 9, .group = {}});
  refuses(CutEvent{
      .epoch = 5, .nonce = {}, .checkpoint = {}, .refpoint = "r", .layer = 9, .group = {}});
  refuses(CutEvent{
      .epoch = 1, .nonce = {}, .checkpoint = "again", .refpoint = {}, .layer = 9, .group = {}});
}

}  // namespace
}  // namespace berth::disk
