// What goes wrong on a simulated disk, on purpose.

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
using testing::UnorderedElementsAre;

constexpr std::uint64_t seeds = 300;

TEST(FaultPlan, AFailedWriteMayHaveHappenedInPart) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const auto file = machine.open("data");
    MUST(machine.write(*file, 0, 4096, 'a'));
    machine.host.faults().add({.path = "vol/data", .on = fault_on::write, .skip = 1});
    MUST(machine.write(*file, 4096, 512, 'z'));
    const auto failed = machine.write(*file, 0, 4096, 'b');
    ASSERT_FALSE(failed.has_value());
    EXPECT_EQ(failed.error().kind(), ErrorKind::io_error);
    const std::string seen = sectors_of(MUST(machine.read(*file, 0, 4096)));
    outcomes.insert(seen == "aaaaaaaa" ? "old" : seen == "bbbbbbbb" ? "new" : "mixed");
    EXPECT_TRUE(machine.write(*file, 0, 4096, 'c').has_value());
  }
  EXPECT_THAT(outcomes, Contains("mixed"));
}

TEST(FaultPlan, AFailedSyncDropsOrStrandsWhatWasDirtyForGood) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.directory->sync());
    MUST(machine.write(*file, 0, 4096, 'a'));
    MUST(machine.sync(*file));
    MUST(machine.write(*file, 0, 4096, 'b'));
    machine.host.faults().add({.path = "vol/data", .on = fault_on::sync});
    EXPECT_EQ(machine.sync(*file).error().kind(), ErrorKind::io_error);
    const char seen = sectors_of(MUST(machine.read(*file, 0, 4096)))[0];
    // The next one says that all is well, and it is not.
    MUST(machine.sync(*file));
    EXPECT_EQ(sectors_of(MUST(machine.read(*file, 0, 4096)))[0], seen);
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::string left = sectors_of(MUST(machine.read(*file, 0, 4096)));
    EXPECT_TRUE(left == "aaaaaaaa" || left == "bbbbbbbb");
    outcomes.insert(std::string{seen, left[0]});
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("aa", "ba", "bb"));
}

TEST(FaultPlan, WhatAFailedSyncStrandedIsDurableOnceItIsWrittenAgain) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.directory->sync());
    MUST(machine.write(*file, 0, 4096, 'a'));
    MUST(machine.sync(*file));
    MUST(machine.write(*file, 0, 4096, 'b'));
    machine.host.faults().add({.path = "vol/data", .on = fault_on::sync});
    EXPECT_FALSE(machine.sync(*file).has_value());
    const bool stranded = machine.host.probes().count("failed_sync_stranded_page") != 0;
    MUST(machine.write(*file, 512, 512, 'c'));
    MUST(machine.sync(*file));
    file.reset();
    machine.restart(true);
    file = machine.open("data");
    const std::string left = sectors_of(MUST(machine.read(*file, 0, 4096)));
    if (stranded) EXPECT_EQ(left, "acaaaaaa");
    outcomes.insert(left);
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("acaaaaaa", "bcbbbbbb"));
}

TEST(FaultPlan, AFullDiskRefusesWhatNeedsSpaceAndNothingElse) {
  SimMachine machine(1);
  const auto file = machine.open("data");
  MUST(file->truncate(1 * MiB));
  MUST(machine.write(*file, 0, 8192, 'a'));
  machine.host.set_space_max(16 * KiB);
  MUST(machine.write(*file, 0, 8192, 'b'));
  MUST(machine.write(*file, 64 * KiB, 8192, 'c'));
  EXPECT_EQ(machine.write(*file, 128 * KiB, 4096, 'd').error().kind(), ErrorKind::no_space);
  MUST(machine.punch(*file, 0, 4096));
  MUST(machine.write(*file, 128 * KiB, 4096, 'd'));
  machine.host.set_space_max(UINT64_MAX);
  machine.host.set_space_max("vol/other", 4096);
  const auto other = machine.open("other");
  MUST(machine.write(*other, 0, 4096, 'e'));
  EXPECT_EQ(machine.write(*other, 4096, 4096, 'e').error().kind(), ErrorKind::no_space);
  MUST(machine.write(*file, 256 * KiB, 4096, 'e'));
}

TEST(FaultPlan, AZeroMayNeedSpaceOnAFullDisk) {
  std::set<bool> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    const auto file = machine.open("data");
    MUST(file->truncate(1 * MiB));
    machine.host.set_space_max(8192);
    const auto done = machine.zero(*file, 0, 64 * KiB);
    if (!done) EXPECT_EQ(done.error().kind(), ErrorKind::no_space);
    outcomes.insert(done.has_value());
  }
  EXPECT_EQ(outcomes.size(), 2U);
}

TEST(FaultPlan, AReadOnlyFileSystemRefusesChanges) {
  SimMachine machine(1);
  const auto file = machine.open("data");
  MUST(machine.write(*file, 0, 4096, 'a'));
  machine.host.set_read_only(true);
  EXPECT_EQ(machine.write(*file, 0, 4096, 'b').error().kind(), ErrorKind::read_only);
  EXPECT_EQ(file->truncate(0).error().kind(), ErrorKind::read_only);
  EXPECT_EQ(machine.directory->remove("data").error().kind(), ErrorKind::read_only);
  EXPECT_EQ(machine.directory->open("new", {.create = true}).error().kind(), ErrorKind::read_only);
  EXPECT_EQ(MUST(machine.read(*file, 0, 4096)), std::string(4096, 'a'));
}

TEST(FaultPlan, AFaultDelaysWithoutFailing) {
  SimMachine machine(1);
  const auto file = machine.open("data");
  machine.host.faults().add({.on = fault_on::read, .error = 0, .delay = std::chrono::seconds(3)});
  const Instant before = machine.loop.now();
  EXPECT_TRUE(machine.read(*file, 0, 1).has_value());
  EXPECT_GE(machine.loop.now() - before, std::chrono::seconds(3));
  EXPECT_TRUE(machine.read(*file, 0, 1).has_value());
  EXPECT_LT(machine.loop.now() - before, std::chrono::seconds(4));
}

TEST(FaultPlan, CorruptionIsSeenAndDurable) {
  SimMachine machine(1);
  auto file = machine.open("data");
  MUST(machine.directory->sync());
  MUST(machine.write(*file, 0, 4096, 'a'));
  MUST(machine.sync(*file));
  MUST(machine.host.corrupt("vol/data", 1000, 1));
  EXPECT_NE(MUST(machine.read(*file, 1000, 1)), "a");
  EXPECT_EQ(MUST(machine.read(*file, 999, 1)), "a");
  file.reset();
  machine.restart(true);
  EXPECT_NE(static_cast<char>(MUST(machine.host.peek("vol/data"))[1000]), 'a');
}

}  // namespace
}  // namespace berth
