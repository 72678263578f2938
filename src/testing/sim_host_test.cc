// The deaths of processes and machines: what lands, what lasts, who gets the lock.
#include "testing/sim_host.h"

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

using testing::UnorderedElementsAre;

constexpr std::uint64_t seeds = 300;

TEST(SimHost, WhatWasWrittenOutlivesTheProcess) {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.write(*file, 0, 10'000, 'a'));
    file.reset();
    machine.restart(false);
    EXPECT_EQ(MUST(machine.read(*machine.open("data"), 0, 10'000)), std::string(10'000, 'a'));
  }
}

TEST(SimHost, WritesOfADeadProcessLandBeforeTheLockIsTakenAndNeverAfter) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data", {.create = true, .lock = true});
    MUST(machine.write(*file, 0, 4096, 'a'));
    {
      Gate gate(machine.loop);
      const std::string bytes(4096, 'b');
      gate.spawn(ignore_result(SimMachine::write_all(*file, 0, as_bytes(bytes))));
      gate.abandon();
    }
    file.reset();
    machine.restart(false);
    std::string before;
    {
      const auto peeking = machine.open("data", {.read_only = true});
      before = sectors_of(MUST(machine.read(*peeking, 0, 4096)));
    }
    file = machine.open("data", {.lock = true});
    const std::string at_lock = sectors_of(MUST(machine.read(*file, 0, 4096)));
    ASSERT_TRUE(machine.loop.run_until_idle());
    ASSERT_EQ(sectors_of(MUST(machine.read(*file, 0, 4096))), at_lock);
    if (before != at_lock) outcomes.insert("landed at the lock");
    outcomes.insert(at_lock == "aaaaaaaa" ? "dropped" : at_lock == "bbbbbbbb" ? "landed" : "torn");
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre("landed at the lock", "dropped", "landed", "torn"));
}

TEST(SimHost, WritesOfADeadProcessToAnUnlockedFileMayLandAtAnyTime) {
  bool late = false;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    {
      Gate gate(machine.loop);
      const std::string bytes(4096, 'b');
      gate.spawn(ignore_result(SimMachine::write_all(*file, 0, as_bytes(bytes))));
      gate.abandon();
    }
    file.reset();
    machine.restart(false);
    file = machine.open("data");
    MUST(machine.write(*file, 0, 4096, 'c'));
    ASSERT_TRUE(machine.loop.run_until_idle());
    late = late || sectors_of(MUST(machine.read(*file, 0, 4096))) != "cccccccc";
  }
  EXPECT_TRUE(late);
}

TEST(SimHost, ALockIsExclusiveUntilTheFileAndItsOperationsAreGone) {
  SimMachine machine(1);
  auto file = machine.open("data", {.create = true, .lock = true});
  EXPECT_EQ(machine.directory->open("data", {.lock = true}).error().kind(), ErrorKind::in_use);
  Gate gate(machine.loop);
  const std::string bytes(4096, 'b');
  FileRequest request{.kind = FileRequest::Kind::sync, .waiter = std::noop_coroutine()};
  file->submit(request);
  file.reset();
  EXPECT_EQ(machine.directory->open("data", {.lock = true}).error().kind(), ErrorKind::in_use);
  ASSERT_TRUE(machine.loop.run_until([&] { return machine.host.operations_in_flight() == 0; }));
  EXPECT_TRUE(machine.directory->open("data", {.lock = true}).has_value());
}

TEST(SimHost, ALingeringLockIsReleasedWhenTheOperationsHaveLanded) {
  bool refused = false;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed, {.lock_lingers = true});
    auto file = machine.open("data", {.create = true, .lock = true});
    {
      Gate gate(machine.loop);
      const std::string bytes(4096, 'b');
      gate.spawn(ignore_result(SimMachine::write_all(*file, 0, as_bytes(bytes))));
      gate.abandon();
    }
    file.reset();
    machine.restart(false);
    const auto locked = machine.directory->open("data", {.lock = true});
    if (locked) continue;
    refused = true;
    EXPECT_EQ(locked.error().kind(), ErrorKind::in_use);
    ASSERT_TRUE(machine.loop.run_until_idle());
    EXPECT_TRUE(machine.directory->open("data", {.lock = true}).has_value());
  }
  EXPECT_TRUE(refused);
}

TEST(SimHost, ACloneAfterDeathIsWhatTheDeathWouldHaveLeft) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data", {.create = true, .lock = true});
    MUST(machine.write(*file, 0, 4096, 'a'));
    MUST(machine.sync(*file));
    // Between the rename and the sync of its directory, where no step ends.
    std::unique_ptr<SimHost> clone;
    const SimDeath death = seed % 2 == 0 ? SimDeath::power : SimDeath::process;
    MUST(machine.directory->sync());
    machine.host.set_blocking_hook([&](std::string_view what, const std::string&) {
      if (what == "sync") clone = machine.host.clone_after(death, seed);
    });
    Gate gate(machine.loop);
    const std::string bytes(4096, 'b');
    gate.spawn(ignore_result(SimMachine::write_all(*file, 0, as_bytes(bytes))));
    MUST(machine.directory->rename("data", "moved"));
    MUST(machine.directory->sync());
    ASSERT_TRUE(machine.loop.run_until([&] { return gate.size() == 0; }));
    EXPECT_EQ(MUST(machine.read(*file, 0, 1)), "b");  // the first one went on

    ASSERT_NE(clone, nullptr);
    SimLoop loop(*clone, seed);
    const auto directory = MUST(clone->open_directory(loop, "vol"));
    const auto names = MUST(directory->list());
    ASSERT_EQ(names.size(), 1U);
    {
      const auto again = MUST(directory->open(names[0], {.lock = true}));
      std::string left(4096, '?');
      MUST(loop.run_until_complete(SimMachine::read_all(
          *again, 0, {reinterpret_cast<std::byte*>(left.data()), left.size()})));
      left = sectors_of(left);
      outcomes.insert((death == SimDeath::power ? "power: " : "process: ") + names[0] +
                      (left == "aaaaaaaa"   ? " old"
                       : left == "bbbbbbbb" ? " new"
                                            : " torn"));
    }
  }
  EXPECT_THAT(outcomes, UnorderedElementsAre(
                            "power: data old", "power: data new", "power: data torn",
                            "power: moved old", "power: moved new", "power: moved torn",
                            "process: moved old", "process: moved new", "process: moved torn"));
}

TEST(SimSharedMemory, OutlivesTheProcessAndNotThePower) {
  SimMachine machine(1);
  auto store = machine.host.shared_memory();
  const std::string boot = store->boot_id();
  {
    const auto memory = MUST(store->create("live", 8192));
    EXPECT_EQ(memory->bytes().size(), 8192U);
    memory->bytes()[5000] = std::byte{7};
  }
  machine.restart(false);
  EXPECT_EQ(MUST(store->open("live"))->bytes()[5000], std::byte{7});
  EXPECT_EQ(store->boot_id(), boot);
  const auto held = MUST(store->open("live"));
  EXPECT_EQ(MUST(store->create("live", 4096))->bytes()[0], std::byte{0});
  EXPECT_EQ(held->bytes()[5000], std::byte{7});
  machine.restart(true);
  EXPECT_EQ(store->open("live").error().kind(), ErrorKind::not_found);
  EXPECT_NE(store->boot_id(), boot);
  EXPECT_EQ(store->remove("live").error().kind(), ErrorKind::not_found);
}

TEST(SimHost, ModificationTimesMayGoBackAtPowerLossUnlessAllIsSynced) {
  std::set<bool> outcomes;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SimMachine machine(seed);
    auto file = machine.open("data");
    MUST(machine.write(*file, 0, 4096, 'a'));
    MUST(machine.sync(*file));
    MUST(machine.directory->sync());
    const std::int64_t first = MUST(file->identity()).modified_ns;
    do {
      MUST(machine.write(*file, 0, 4096, 'b'));
    } while (MUST(file->identity()).modified_ns == first);
    const bool all = seed % 2 == 0;
    MUST(all ? machine.loop.run_until_complete(SimMachine::sync_all(*file)) : machine.sync(*file));
    const FileIdentity identity = MUST(file->identity());
    file.reset();
    machine.restart(true);
    const bool kept = MUST(machine.open("data")->identity()) == identity;
    if (all) {
      EXPECT_TRUE(kept);
    } else {
      outcomes.insert(kept);
    }
  }
  EXPECT_EQ(outcomes.size(), 2U);
}

}  // namespace
}  // namespace berth
