// Names on a simulated disk: what a power loss may do to those that are not synced.

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

using testing::ElementsAre;
using testing::UnorderedElementsAre;

constexpr std::uint64_t seeds = 300;

TEST(SimDirectory, AnUnsyncedNameMayVanishEvenIfTheFileWasSynced) {
  std::set<bool> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    MUST(machine.sync(*machine.open("data")));
    if (seed % 2 == 0) MUST(machine.directory->sync());
    machine.restart(true);
    const bool exists = MUST(machine.directory->exists("data"));
    if (seed % 2 == 0) {
      EXPECT_TRUE(exists);
    } else {
      outcomes.insert(exists);
    }
  }
  EXPECT_EQ(outcomes.size(), 2U);
}

TEST(SimDirectory, ARemovedFileMayComeBackWithItsContent) {
  std::set<bool> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.write(*file, 0, 512, 'a'));
    MUST(machine.sync(*file));
    MUST(machine.directory->sync());
    file.reset();
    MUST(machine.directory->remove("data"));
    EXPECT_FALSE(MUST(machine.directory->exists("data")));
    machine.restart(true);
    outcomes.insert(MUST(machine.directory->exists("data")));
    if (outcomes.contains(true) && MUST(machine.directory->exists("data"))) {
      EXPECT_EQ(MUST(machine.read(*machine.open("data"), 0, 512)), std::string(512, 'a'));
    }
  }
  EXPECT_EQ(outcomes.size(), 2U);
}

TEST(SimDirectory, ARenameIsAtomic) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const auto make = [&](const std::string& name, char byte) {
      const auto file = machine.open(name);
      MUST(machine.write(*file, 0, 512, byte));
      MUST(machine.sync(*file));
    };
    make("current", 'a');
    MUST(machine.directory->sync());
    make("next", 'b');
    MUST(machine.directory->rename("next", "current"));
    machine.restart(true);
    ASSERT_TRUE(MUST(machine.directory->exists("current")));
    outcomes.insert(MUST(machine.read(*machine.open("current"), 0, 1)) +
                    (MUST(machine.directory->exists("next")) ? "+next" : ""));
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("a", "a+next", "b"));
}

TEST(SimDirectory, ChangesOfOneNameAreUndoneFromTheLast) {
  std::set<std::vector<std::string>> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    (void)machine.open("a");
    MUST(machine.directory->rename("a", "b"));
    MUST(machine.directory->rename("b", "c"));
    (void)machine.open("other");
    machine.restart(true);
    auto names = MUST(machine.directory->list());
    std::ranges::sort(names);
    outcomes.insert(names);
  }
  using Names = std::vector<std::string>;
  EXPECT_THAT(outcomes, UnorderedElementsAre(Names{}, Names{"other"}, Names{"a"},
                                             Names{"a", "other"}, Names{"b"}, Names{"b", "other"},
                                             Names{"c"}, Names{"c", "other"}));
}

TEST(SimDirectory, ASubdirectoryIsLostWithAllThatIsInIt) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    {
      const auto holds = MUST(machine.directory->open_directory("holds", true));
      MUST(holds->open("layer", {.create = true}));
      MUST(holds->sync());
    }
    machine.restart(true);
    const auto holds = machine.directory->open_directory("holds", false);
    if (holds) {
      EXPECT_TRUE(MUST((*holds)->exists("layer")));
    }
    outcomes.insert(holds ? "there" : "gone");
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("there", "gone"));
}

TEST(SimDirectory, AnInodeNumberMayBeUsedAgain) {
  std::set<bool> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const std::uint64_t first = MUST(machine.open("a")->identity()).inode;
    MUST(machine.directory->remove("a"));
    MUST(machine.directory->sync());
    outcomes.insert(MUST(machine.open("b")->identity()).inode == first);
  }
  EXPECT_EQ(outcomes.size(), 2U);
}

TEST(SimDirectory, SaysWhatItCannotDo) {
  SimMachine machine(1);
  const auto kind = [](const auto& result) { return result.error().kind(); };
  EXPECT_EQ(kind(machine.directory->open("a", {})), ErrorKind::not_found);
  (void)machine.open("a");
  EXPECT_EQ(kind(machine.directory->open("a", {.create = true, .exclusive = true})),
            ErrorKind::already_exists);
  EXPECT_EQ(kind(machine.directory->remove("b")), ErrorKind::not_found);
  EXPECT_EQ(kind(machine.directory->rename("b", "c")), ErrorKind::not_found);
  EXPECT_EQ(kind(machine.directory->open("../a", {})), ErrorKind::invalid_argument);
  machine.host.faults().add({.on = fault_on::rename, .error = ENOSPC});
  EXPECT_EQ(kind(machine.directory->rename("a", "c")), ErrorKind::no_space);
  EXPECT_THAT(MUST(machine.directory->list()), ElementsAre("a"));
}

}  // namespace
}  // namespace berth
