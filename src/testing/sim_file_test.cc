// What the simulated disk promises of a file, and that it breaks everything else: each rare outcome
// is seen over some hundreds of seeds, and no forbidden one is.
#include "testing/sim_file.h"

#include <algorithm>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "base/units.h"
#include "testing/sim_machine.h"

namespace berth {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::IsSubsetOf;
using testing::UnorderedElementsAre;

constexpr std::uint64_t seeds = 300;

TEST(SimFile, ReadsWhatWasWritten) {
  SimMachine machine(1);
  const auto file = machine.open("data");
  MUST(machine.write(*file, 100, as_bytes("hello")));
  EXPECT_EQ(MUST(file->size()), 105U);
  EXPECT_EQ(MUST(machine.read(*file, 98, 5)), std::string("\0\0hel", 5));
  EXPECT_EQ(MUST(machine.read(*file, 103, 100)), "lo");
  EXPECT_EQ(MUST(machine.read(*file, 200, 100)), "");
}

TEST(SimFile, AgreesWithAPlainBufferAsLongAsNothingFails) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SimMachine machine(seed);
    SimRandom random(seed);
    const auto file = machine.open("data");
    std::string model;
    for (int step = 0; step < 100; ++step) {
      const std::uint64_t offset = random.below(64 * KiB);
      const std::uint64_t length = random.between(1, 16 * KiB);
      const auto grow = [&](std::uint64_t end) {
        if (model.size() < end) model.resize(end, '\0');
      };
      switch (random.below(6)) {
        case 0:
        case 1: {
          grow(offset + length);
          const char byte = static_cast<char>('a' + random.below(26));
          std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset), length, byte);
          MUST(machine.write(*file, offset, length, byte));
          break;
        }
        case 2: {
          for (std::size_t at = offset; at < std::min<std::size_t>(offset + length, model.size());
               ++at) {
            model[at] = '\0';
          }
          MUST(machine.punch(*file, offset, length));
          break;
        }
        case 3:
          if (random.one_in(4)) {
            model.resize(offset, '\0');
            MUST(file->truncate(offset));
          }
          break;
        case 4: MUST(machine.sync(*file)); break;
        default: {
          const std::string expected =
              offset < model.size() ? model.substr(offset, length) : std::string();
          ASSERT_EQ(MUST(machine.read(*file, offset, length)), expected) << "seed " << seed;
        }
      }
      ASSERT_EQ(MUST(file->size()), model.size());
    }
    // Holes read zero; whatever is not zero is data.
    std::uint64_t at = 0;
    while (at < model.size()) {
      const std::uint64_t data = MUST(file->next_data(at));
      EXPECT_EQ(model.find_first_not_of('\0', at) < data, false) << "seed " << seed;
      at = MUST(file->next_hole(data));
      EXPECT_GE(at, data);
    }
  }
}

TEST(SimFile, AnUnsyncedWriteIsLostKeptOrTornAtPowerLoss) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.write(*file, 0, 4096, 'a'));
    MUST(machine.sync(*file));
    MUST(machine.directory->sync());
    MUST(machine.write(*file, 0, 4096, 'b'));
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::string left = sectors_of(MUST(machine.read(*file, 0, 4096)));
    ASSERT_EQ(left.size(), 8U);
    ASSERT_EQ(left.find_first_not_of("ab"), std::string::npos);
    outcomes.insert(left == "aaaaaaaa" ? "lost" : left == "bbbbbbbb" ? "kept" : "torn");
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("lost", "kept", "torn"));
}

TEST(SimFile, AnyVersionSinceTheLastSyncMaySurviveButNoneBeforeIt) {
  std::set<char> outcomes;
  bool all_in_one_page = false;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.write(*file, 0, 4096, 'a'));
    MUST(machine.write(*file, 0, 4096, 'b'));
    MUST(machine.sync(*file));
    MUST(machine.directory->sync());
    MUST(machine.write(*file, 0, 4096, 'c'));
    MUST(machine.write(*file, 0, 4096, 'd'));
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::string left = sectors_of(MUST(machine.read(*file, 0, 4096)));
    outcomes.insert(left.begin(), left.end());
    all_in_one_page = all_in_one_page || std::set<char>(left.begin(), left.end()).size() == 3;
  }
  EXPECT_TRUE(all_in_one_page);
  EXPECT_THAT(outcomes, ElementsAre('b', 'c', 'd'));
}

TEST(SimFile, ALaterWriteMaySurviveWithoutAnEarlierOne) {
  SimProbes probes;
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto first = machine.open("first");
    auto second = machine.open("second");
    MUST(machine.write(*first, 0, 4096, '0'));
    MUST(machine.write(*second, 0, 4096, '0'));
    MUST(machine.sync(*first));
    MUST(machine.sync(*second));
    MUST(machine.directory->sync());
    MUST(machine.write(*first, 0, 512, '1'));
    MUST(machine.write(*second, 0, 512, '1'));
    first.reset();
    second.reset();
    machine.restart(true);
    outcomes.insert(MUST(machine.read(*machine.open("first"), 0, 1)) +
                    MUST(machine.read(*machine.open("second"), 0, 1)));
    probes.merge(machine.host.probes());
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("00", "01", "10", "11"));
  EXPECT_GT(probes.count("power_loss_reordered_writes"), 0U);
}

TEST(SimFile, ASyncCoversWhatHadEndedWhenItWasSubmittedAndNoMore) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.directory->sync());
    MUST(machine.write(*file, 0, 4096, 'a'));
    std::string when = "still in flight, ";
    {
      Gate gate(machine.loop);
      const std::string bytes(4096, 'b');
      gate.spawn(ignore_result(SimMachine::write_all(*file, 4096, as_bytes(bytes))));
      MUST(machine.sync(*file));
      if (gate.size() == 0) when = "ended during the sync, ";
      gate.abandon();
    }
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::string left = MUST(machine.read(*file, 0, 8192));
    ASSERT_GE(left.size(), 4096U);
    ASSERT_EQ(sectors_of(left.substr(0, 4096)), "aaaaaaaa") << "seed " << seed;
    const std::string rest = sectors_of(left.substr(4096));
    outcomes.insert(when + (rest == "bbbbbbbb"                    ? "kept"
                            : rest.find('b') == std::string::npos ? "lost"
                                                                  : "torn"));
  }
  EXPECT_THAT(outcomes,
              UnorderedElementsAre("still in flight, lost", "still in flight, kept",
                                   "still in flight, torn", "ended during the sync, lost",
                                   "ended during the sync, kept", "ended during the sync, torn"));
}

TEST(SimFile, AnUnsyncedSizeMayBeLostAndASyncedOneNeverIs) {
  std::set<std::size_t> sizes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.directory->sync());
    MUST(file->truncate(8192));
    MUST(machine.sync(*file));
    MUST(file->truncate(100));
    MUST(machine.write(*file, 4096, 4096, 'x'));
    MUST(file->truncate(20'000));
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::uint64_t size = MUST(file->size());
    sizes.insert(size);
    MUST(file->truncate(30'000));
    const std::string beyond = MUST(machine.read(*file, size, 30'000 - size));
    EXPECT_EQ(beyond, std::string(30'000 - size, '\0'));
    const std::string left = MUST(machine.read(*file, 0, 20'000));
    EXPECT_EQ(left.find_first_not_of(std::string("x\0", 2)), std::string::npos);
  }
  EXPECT_THAT(sizes,
              IsSubsetOf({100U, 4608U, 5120U, 5632U, 6144U, 6656U, 7168U, 7680U, 8192U, 20'000U}));
  EXPECT_THAT(sizes, Contains(100U));
  EXPECT_THAT(sizes, Contains(8192U));
  EXPECT_THAT(sizes, Contains(20'000U));
}

TEST(SimFile, AZeroMayKeepOrTakeSpaceAndGrowsTheFile) {
  std::set<std::uint64_t> spaces;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const auto file = machine.open("data");
    MUST(machine.write(*file, 0, 8192, 'a'));
    MUST(machine.zero(*file, 100, 20'000));
    EXPECT_EQ(MUST(machine.read(*file, 0, 30'000)),
              std::string(100, 'a') + std::string(20'000, '\0'));
    spaces.insert(machine.host.space_used());
  }
  EXPECT_THAT(spaces, ElementsAre(4096U, 20'480U));
}

TEST(SimFile, APunchMayBeUndoneUntilItIsSynced) {
  std::set<char> unsynced;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.directory->sync());
    MUST(machine.write(*file, 0, 8192, 'a'));
    MUST(machine.sync(*file));
    const std::uint64_t used = machine.host.space_used();
    MUST(machine.punch(*file, 0, 4096));
    EXPECT_EQ(machine.host.space_used(), used - 4096);
    EXPECT_EQ(MUST(file->next_data(0)), 4096U);
    const bool synced = seed % 2 == 0;
    if (synced) MUST(machine.sync(*file));
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::string left = sectors_of(MUST(machine.read(*file, 0, 8192)));
    EXPECT_EQ(left.substr(8), "aaaaaaaa");
    if (synced) {
      EXPECT_EQ(left.substr(0, 8), std::string(8, '\0'));
    } else {
      unsynced.insert(left[0]);
    }
  }
  EXPECT_THAT(unsynced, ElementsAre('\0', 'a'));
}

TEST(SimFile, AReadDuringAWriteSeesOldOrNewSectorBySector) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const auto file = machine.open("data");
    MUST(machine.write(*file, 0, 4096, 'a'));
    Gate gate(machine.loop);
    const std::string bytes(4096, 'b');
    gate.spawn(ignore_result(SimMachine::write_all(*file, 0, as_bytes(bytes))));
    const std::string seen = sectors_of(MUST(machine.read(*file, 0, 4096)));
    ASSERT_TRUE(machine.loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_EQ(sectors_of(MUST(machine.read(*file, 0, 4096))), "bbbbbbbb");
    outcomes.insert(seen == "aaaaaaaa" ? "old" : seen == "bbbbbbbb" ? "new" : "mixed");
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("old", "new", "mixed"));
}

TEST(SimFile, ADirectFileRefusesWhatIsNotAligned) {
  SimMachine machine(1);
  const auto file = machine.open("data", {.create = true, .direct = true});
  alignas(4096) static std::array<std::byte, 8192> buffer{};
  EXPECT_TRUE(machine.write(*file, 4096, buffer).has_value());
  EXPECT_FALSE(machine.write(*file, 512, buffer).has_value());
  EXPECT_FALSE(machine.write(*file, 0, Bytes(buffer).subspan(512)).has_value());
  EXPECT_FALSE(machine.write(*file, 0, Bytes(buffer).first(512)).has_value());
}

TEST(SimFile, ABufferChangedInFlightLeavesEitherContent) {
  std::set<char> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const auto file = machine.open("data");
    std::string bytes(512, 'a');
    Gate gate(machine.loop);
    gate.spawn(ignore_result(SimMachine::write_all(*file, 0, as_bytes(bytes))));
    std::ranges::fill(bytes, 'b');
    ASSERT_TRUE(machine.loop.run_until([&] { return gate.size() == 0; }));
    outcomes.insert(sectors_of(MUST(machine.read(*file, 0, 512)))[0]);
    EXPECT_EQ(machine.host.probes().count("write_buffer_changed_in_flight"), 1U);
  }
  EXPECT_THAT(outcomes, ElementsAre('a', 'b'));
}

}  // namespace
}  // namespace berth
