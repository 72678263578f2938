#include "machine/vm/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "machine/vm/qemu_command.h"

namespace berth::machine {
namespace {

MachineMemory machine(const std::string& name, std::uint64_t memory) {
  return {.name = name, .memory = memory, .overhead = 64 * MiB};
}

/// Room for eight machines of 960 MiB, each with 64 MiB of QEMU.
MemoryAdmission host() {
  return {.ram = 6 * GiB + host_reserve_bytes,
          .swap = 2 * GiB,
          .memory_dir_size = 10 * GiB,
          .memory_dir_free = 10 * GiB};
}

TEST(Admission, TakesWhatFitsExactly) {
  EXPECT_TRUE(check_admission(host(), machine("web", 8 * GiB - 64 * MiB)));
  EXPECT_FALSE(check_admission(host(), machine("web", 8 * GiB - 62 * MiB)));
}

TEST(Admission, SaysTheSumInWords) {
  MemoryAdmission crowded = host();
  for (const char* name : {"a", "b", "c"}) crowded.running.push_back(machine(name, 2 * GiB));
  const auto refused = check_admission(crowded, machine("web", 2 * GiB));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::limit);
  EXPECT_EQ(
      refused.error().message(),
      "machine 'web' needs 2.1 GiB (2.0 GiB of memory and 64.0 MiB for QEMU); 3 running "
      "machines have 6.2 GiB, the host keeps 256.0 MiB, and RAM and swap are 8.2 GiB (6.2 GiB "
      "and 2.0 GiB): 256.0 MiB too little. Stop a machine, give this one less memory, or add "
      "swap");
  crowded.running.pop_back();
  EXPECT_TRUE(check_admission(crowded, machine("web", 2 * GiB)));
}

TEST(Admission, AMachineIsNotCountedTwice) {
  MemoryAdmission restart = host();
  restart.running = {machine("web", 6 * GiB)};
  EXPECT_TRUE(check_admission(restart, machine("web", 6 * GiB)));
  EXPECT_FALSE(check_admission(restart, machine("other", 6 * GiB)));
}

TEST(Admission, TheMemoryDirectoryHoldsAllMemoryEvenIfItIsNotTouchedYet) {
  MemoryAdmission small = host();
  small.memory_dir_size = 3 * GiB;
  small.memory_dir_free = 3 * GiB;
  small.running = {machine("a", 2 * GiB)};
  EXPECT_TRUE(check_admission(small, machine("web", GiB)));
  const auto refused = check_admission(small, machine("web", GiB + 2 * MiB));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::limit);
  EXPECT_THAT(refused.error().message(),
              testing::HasSubstr("1 running machine has 2.0 GiB there, and the memory directory "
                                 "holds 3.0 GiB: 2.0 MiB too little"));
}

TEST(Admission, WhatOthersKeepInTheMemoryDirectoryIsNotFree) {
  MemoryAdmission shared = host();
  shared.memory_dir_free = GiB;
  EXPECT_TRUE(check_admission(shared, machine("web", GiB)));
  const auto refused = check_admission(shared, machine("web", GiB + 2 * MiB));
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(),
              testing::HasSubstr("of the 10.0 GiB of the memory directory 1.0 GiB are free: "
                                 "2.0 MiB too little"));
}

TEST(Admission, EmulationCountsWithItsTranslatedCode) {
  const MachineSpecification specification{.name = "web", .cpus = 2, .memory = GiB};
  const MachineMemory kvm = memory_of(specification, true);
  EXPECT_EQ(kvm.name, "web");
  EXPECT_EQ(kvm.memory, GiB);
  EXPECT_EQ(kvm.overhead, 66 * MiB);
  EXPECT_EQ(memory_of(specification, false).overhead, kvm.overhead + tcg_code_bytes_max);
}

TEST(Admission, CloneNeedsNoMemoryDirectoryButWhatTheHostReallyHas) {
  MemoryAdmission small = host();
  small.memory_dir_size = GiB;
  small.memory_dir_free = 0;
  small.available = host_reserve_bytes + 128 * MiB;
  MachineMemory clone = machine("clone", 64 * MiB);
  clone.is_clone = true;
  EXPECT_TRUE(check_admission(small, clone));
  // Those that run count, and what is in no memory directory is not taken from there.
  small.memory_dir_free = GiB;
  for (int i = 0; i < 16; ++i) {
    small.running.push_back(clone);
    small.running.back().name += std::to_string(i);
  }
  EXPECT_TRUE(check_admission(small, machine("web", GiB)));
  clone.memory += MiB;
  const auto refused = check_admission(small, clone);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::limit);
  EXPECT_THAT(refused.error().message(),
              testing::HasSubstr("384.0 MiB are left: 1.0 MiB too little"));
}

TEST(Admission, AHostWithoutRoomTakesNothing) {
  EXPECT_FALSE(check_admission({}, machine("web", 16 * MiB)));
}

}  // namespace
}  // namespace berth::machine
