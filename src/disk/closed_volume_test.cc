// Volumes whose directory was moved or copied: what is asked of them afterwards, and deaths at
// every step of saying so.
#include "disk/closed_volume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "disk/test_support.h"

namespace berth::disk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint32_t block_size = 64 * KiB;
constexpr std::uint64_t size = 80 * MiB;  // two pages of the map

Task<Result<Settled>> settle_it(Loop* loop, Directory* directory, Random* random, Arrival arrival) {
  auto volume = CO_TRY(co_await ClosedVolume::open(*loop, *directory, false));
  co_return co_await volume->settle(*random, arrival);
}

Task<> settle_unheard(Loop* loop, Directory* directory, Random* random, Arrival arrival,
                      bool* done) {
  *done = (co_await settle_it(loop, directory, random, arrival)).has_value();
}

Task<Result<ClosedVolume::Contents>> contents_of(Loop* loop, Directory* directory) {
  auto volume = CO_TRY(co_await ClosedVolume::open(*loop, *directory, false));
  co_return co_await volume->read_contents();
}

/// A closed volume "vol": block 1 was written before the points "r" (kept) and "c" (held), block 3
/// between them, blocks 1 and 2 after both.
class ClosedVolumeTest : public testing::Test {
 protected:
  explicit ClosedVolumeTest(std::uint64_t seed = 1) : machine_(seed) {
    MUST(machine_.create({.size = size, .block_size = block_size}));
    MUST(machine_.open());
    MUST(machine_.write(block_size, block_size, 'a'));
    original_ = machine_.volume->info().id;
    nonce_ = MUST(machine_.refpoint("r")).refpoint->nonce;
    MUST(machine_.write(3 * block_size, block_size, 'b'));
    MUST(machine_.checkpoint("c"));
    MUST(machine_.write(block_size, 2 * block_size, 'd'));
    MUST(machine_.write(size - block_size, block_size, 'e'));
  }

  void close_and_copy() {
    MUST(machine_.close());
    copy();
  }
  void copy() {
    MUST(machine_.host.copy_directory("vol", "copy"));
    machine_.go_to("copy");
  }
  Result<Settled> settle(Arrival arrival) {
    return machine_.run(
        settle_it(machine_.loop.get(), machine_.directory.get(), &machine_.random, arrival));
  }
  template <typename T>
  static void expect_refused(const Result<T>& result, ErrorKind kind, const std::string& why) {
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().kind(), kind);
    EXPECT_THAT(result.error().message(), HasSubstr(why));
  }
  void expect_exact_changes() {
    const auto page = machine_.changes("r");
    ASSERT_TRUE(page.has_value()) << page.error().message();
    EXPECT_TRUE(page->exact);
    EXPECT_THAT(page->extents, ElementsAre(Extent{block_size, 3 * block_size},
                                           Extent{size - block_size, block_size}));
  }
  void expect_content() {
    EXPECT_EQ(machine_.read(block_size, 1), "d");
    EXPECT_EQ(machine_.read(3 * block_size, 1), "b");
    EXPECT_EQ(machine_.read(size - 1, 1), "e");
    EXPECT_EQ(machine_.read_checkpoint("c", block_size, 1), "a");
    EXPECT_EQ(machine_.read_checkpoint("c", 2 * block_size, 1), std::string(1, '\0'));
    EXPECT_EQ(machine_.read_checkpoint("c", 3 * block_size, 1), "b");
  }

  VolumeMachine machine_;
  Id128 original_;
  Id128 nonce_;
};

TEST_F(ClosedVolumeTest, AMovedVolumeIsTheSameOneAndItsPointsStayGood) {
  close_and_copy();
  const auto settled = settle(Arrival::moved);
  ASSERT_TRUE(settled.has_value()) << settled.error().message();
  EXPECT_EQ(settled->volume, original_);
  EXPECT_THAT(settled->void_refpoints, IsEmpty());
  MUST(machine_.open());
  EXPECT_THAT(machine_.events, IsEmpty());
  EXPECT_EQ(machine_.volume->info().id, original_);
  EXPECT_EQ(machine_.volume->refpoints().front().nonce, nonce_);
  expect_content();
  expect_exact_changes();
  MUST(machine_.reopen());
  expect_exact_changes();
}

TEST_F(ClosedVolumeTest, AVolumeThatNobodyMovedIsLeftAsItIs) {
  MUST(machine_.close());
  const auto before = machine_.read_file("map", journal_offset_a, MiB);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(settle(Arrival::moved).has_value());
  EXPECT_EQ(machine_.read_file("map", journal_offset_a, MiB), before);
  MUST(machine_.open());
  expect_exact_changes();
}

TEST_F(ClosedVolumeTest, ACopyThatIsOpenedUnsaidGivesItsPointsUpAndSaysHowToKeepThem) {
  close_and_copy();
  MUST(machine_.open());
  ASSERT_EQ(machine_.events.size(), 1U);
  EXPECT_THAT(machine_.events[0].message, HasSubstr("volume import"));
  expect_refused(machine_.changes("r"), ErrorKind::full_backup_required, "was changed");
  EXPECT_TRUE(machine_.volume->checkpoints().front().lost);
}

TEST_F(ClosedVolumeTest, ACopyIsAnotherVolumeWithCheckpointsAndWithoutReferencePoints) {
  close_and_copy();
  const auto settled = settle(Arrival::copied);
  ASSERT_TRUE(settled.has_value()) << settled.error().message();
  EXPECT_NE(settled->volume, original_);
  EXPECT_THAT(settled->void_refpoints, ElementsAre("r"));
  EXPECT_THAT(settled->lost_checkpoints, IsEmpty());
  MUST(machine_.open());
  EXPECT_EQ(machine_.volume->info().id, settled->volume);
  EXPECT_EQ(machine_.volume->refpoints().front().volume, settled->volume);
  expect_content();
  expect_refused(machine_.changes("r"), ErrorKind::full_backup_required, "became a copy");
  expect_refused(machine_.changes("c"), ErrorKind::full_backup_required, "became a copy");

  MUST(machine_.refpoint("own"));
  MUST(machine_.write(7 * block_size, 1, 'x'));
  EXPECT_THAT(MUST(machine_.changes("own")).extents,
              ElementsAre(Extent{7 * block_size, block_size}));
  for (const bool power : {false, true}) {
    power ? machine_.lose_power() : machine_.die();
    MUST(machine_.open());
    EXPECT_EQ(machine_.volume->info().id, settled->volume);
    expect_content();
    const auto own = MUST(machine_.changes("own")).extents;
    EXPECT_FALSE(own.empty());
    expect_refused(machine_.changes("r"), ErrorKind::full_backup_required, "became a copy");
  }
  MUST(machine_.close());
  EXPECT_TRUE(MUST(machine_.check()).sound());

  machine_.go_to("vol");
  MUST(machine_.open());
  EXPECT_EQ(machine_.volume->info().id, original_);
  expect_exact_changes();
}

TEST_F(ClosedVolumeTest, APointOfTheOriginalIsNoneOfTheCopyWhateverItsName) {
  close_and_copy();
  MUST(settle(Arrival::copied));
  MUST(machine_.open());
  MUST(machine_.run(machine_.volume->delete_refpoint("r")));
  MUST(machine_.refpoint("r"));
  MUST(machine_.changes("r"));
  ChangesRequest request;
  request.since = "r";
  request.nonce = nonce_;
  expect_refused(machine_.run(machine_.volume->changes(request)), ErrorKind::full_backup_required,
                 "another one");
}

TEST_F(ClosedVolumeTest, TheNewIdentityOutlivesTheJournalsGenerations) {
  close_and_copy();
  const auto settled = MUST(settle(Arrival::copied));
  MUST(machine_.open());
  for (int i = 0; machine_.read_file("map", journal_offset_b, 1)[0] == std::byte{0}; ++i) {
    MUST(machine_.refpoint("again"));
    MUST(machine_.run(machine_.volume->delete_refpoint("again")));
    ASSERT_LT(i, 20'000);
  }
  MUST(machine_.reopen());
  EXPECT_EQ(machine_.volume->info().id, settled.volume);
  expect_refused(machine_.changes("r"), ErrorKind::full_backup_required, "became a copy");
  expect_content();
}

TEST_F(ClosedVolumeTest, ACopyOfACopyIsAThirdVolume) {
  close_and_copy();
  const auto first = MUST(settle(Arrival::copied));
  MUST(machine_.host.copy_directory("copy", "third"));
  machine_.go_to("third");
  const auto second = MUST(settle(Arrival::copied));
  EXPECT_NE(second.volume, first.volume);
  EXPECT_THAT(second.void_refpoints, IsEmpty());
  MUST(machine_.open());
  expect_content();
}

// --- What is not as it should be.

TEST_F(ClosedVolumeTest, AVolumeThatWasNotClosedIsNotMovedAndCanBeCopied) {
  MUST(machine_.flush());
  machine_.die();
  machine_.host.settle();
  copy();
  expect_refused(settle(Arrival::moved), ErrorKind::precondition, "was not closed");
  const auto settled = settle(Arrival::copied);
  ASSERT_TRUE(settled.has_value()) << settled.error().message();
  MUST(machine_.open());
  expect_content();
  expect_refused(machine_.changes("r"), ErrorKind::full_backup_required, "became a copy");
  MUST(machine_.refpoint("own"));
  EXPECT_THAT(MUST(machine_.changes("own")).extents, IsEmpty());
}

TEST_F(ClosedVolumeTest, ADataFileThatWasChangedIsNotMovedAndItsCopyHasNoCheckpoints) {
  close_and_copy();
  machine_.write_file("data", 5 * block_size, as_bytes("by somebody else"));
  expect_refused(settle(Arrival::moved), ErrorKind::precondition, "time of modification");
  const auto settled = settle(Arrival::copied);
  ASSERT_TRUE(settled.has_value()) << settled.error().message();
  EXPECT_THAT(settled->lost_checkpoints, ElementsAre("c"));
  MUST(machine_.open());
  EXPECT_EQ(machine_.read(5 * block_size, 2), "by");
  EXPECT_TRUE(machine_.volume->checkpoints().front().lost);
  expect_refused(machine_.changes("r"), ErrorKind::full_backup_required, "became a copy");
}

TEST_F(ClosedVolumeTest, ADataFileOfAnotherSizeIsNotMoved) {
  close_and_copy();
  MUST(machine_.open_file("data")->truncate(size + 1));
  expect_refused(settle(Arrival::moved), ErrorKind::precondition, "another size");
  MUST(machine_.open_file("data")->truncate(size - block_size));
  expect_refused(settle(Arrival::moved), ErrorKind::corrupt, "its data file has");
  expect_refused(settle(Arrival::copied), ErrorKind::corrupt, "its data file has");
}

TEST_F(ClosedVolumeTest, AMapWithoutItsNewestPagesIsNotMoved) {
  MUST(machine_.reopen());
  MUST(machine_.write(block_size, block_size, 'f'));
  close_and_copy();
  const std::vector<std::byte> zeros(page_size);
  for (unsigned slot = 0; slot < 2; ++slot)
    machine_.write_file("map", page_slot_offset(0, slot), zeros);
  expect_refused(settle(Arrival::moved), ErrorKind::corrupt, "pages of its map");
}

TEST_F(ClosedVolumeTest, ADamagedMapOrHoldIsNeitherMovedNorCopied) {
  close_and_copy();
  for (unsigned slot = 0; slot < 2; ++slot) machine_.damage_page(1, slot);
  for (const Arrival arrival : {Arrival::moved, Arrival::copied})
    expect_refused(settle(arrival), ErrorKind::corrupt, "page 1");
  copy();
  const auto holds = MUST(machine_.directory->open_directory("holds", false));
  for (const std::string& name : MUST(holds->list())) MUST(holds->remove(name));
  for (const Arrival arrival : {Arrival::moved, Arrival::copied})
    expect_refused(settle(arrival), ErrorKind::corrupt, "check --repair");
}

TEST_F(ClosedVolumeTest, AnOpenVolumeIsInUse) {
  expect_refused(settle(Arrival::copied), ErrorKind::in_use, "");
  MUST(machine_.close());
  machine_.go_to("nothing here");
  expect_refused(settle(Arrival::moved), ErrorKind::not_found, "no volume");
}

TEST_F(ClosedVolumeTest, WhatIsStillReadFromTheBackingIsKnown) {
  MUST(machine_.close());
  machine_.go_to("overlay");
  machine_.open_backing = [this](const std::string&) {
    return open_constant(&machine_, 2 * MiB, 'b');
  };
  MUST(machine_.create({.size = 4 * MiB, .block_size = block_size, .backing = "b"}));
  const auto needs = [this] {
    return MUST(machine_.run(contents_of(machine_.loop.get(), machine_.directory.get())))
        .needs_backing;
  };
  EXPECT_TRUE(needs());
  MUST(machine_.open());
  MUST(machine_.checkpoint("base"));
  MUST(machine_.run(machine_.volume->zero(0, MiB, false)));
  MUST(machine_.write(MiB, MiB - block_size, 'x'));
  MUST(machine_.close());
  EXPECT_TRUE(needs());
  MUST(machine_.open());
  MUST(machine_.write(2 * MiB - block_size, block_size, 'x'));
  MUST(machine_.close());
  EXPECT_TRUE(needs());  // the checkpoint does
  MUST(machine_.open());
  MUST(machine_.run(machine_.volume->release_checkpoint("base")));
  MUST(machine_.close());
  EXPECT_FALSE(needs());
}

// --- Deaths.

class ArrivalDeathTest : public ClosedVolumeTest,
                         public testing::WithParamInterface<std::tuple<Arrival, bool>> {
 protected:
  ArrivalDeathTest() : ClosedVolumeTest(7) {}
};

TEST_P(ArrivalDeathTest, AtAnyStepItHasHappenedOrCanBeDoneAgain) {
  const auto [arrival, power] = GetParam();
  MUST(machine_.close());
  bool done = false;
  std::uint64_t steps = 0;
  for (; !done; ++steps) {
    ASSERT_LT(steps, 2000U);
    copy();
    const std::uint64_t begin = machine_.loop->steps();
    Gate gate(*machine_.loop);
    gate.spawn(settle_unheard(machine_.loop.get(), machine_.directory.get(), &machine_.random,
                              arrival, &done));
    (void)machine_.loop->run_until(
        [&] { return gate.size() == 0 || machine_.loop->steps() - begin >= steps; });
    gate.abandon();
    power ? machine_.lose_power() : machine_.die();
    if (!done && power) continue;  // what was not synced may be gone: copy it again
    if (!done) {
      const auto again = settle(arrival);
      ASSERT_TRUE(again.has_value()) << steps << ": " << again.error().message();
    }
    MUST(machine_.open());
    expect_content();
    if (arrival == Arrival::moved) expect_exact_changes();
    if (arrival == Arrival::copied)
      EXPECT_EQ(kind_of(machine_.changes("r")), ErrorKind::full_backup_required);
    EXPECT_EQ(machine_.volume->info().id == original_, arrival == Arrival::moved);
    MUST(machine_.close());
  }
  EXPECT_GT(steps, 20U);
}

INSTANTIATE_TEST_SUITE_P(
    BothWays, ArrivalDeathTest,
    testing::Combine(testing::Values(Arrival::moved, Arrival::copied), testing::Bool()),
    [](const auto& info) {
      return std::string(std::get<0>(info.param) == Arrival::moved ? "moved" : "copied") +
             (std::get<1>(info.param) ? "_power_loss" : "_process_death");
    });

}  // namespace
}  // namespace berth::disk
