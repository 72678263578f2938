#include "machine/vm/machine_hibernation_record.h"

#include <gmock/gmock.h>

#include "async/test_support.h"

namespace berth::machine {
namespace {

MachineHibernation some() {
  return {.saved = {.qemu = "7.2.22",
                    .accelerator = "tcg",
                    .memory = 256 << 20,
                    .pages = "pages-3",
                    .devices = "hibernated-devices",
                    .device_checksum = ~std::uint64_t{0},
                    .pause = {.level = PauseLevel::hibernated, .since = "t", .memory = {}}},
          .machine_type = "pc-q35-7.2",
          .cpu_model = "qemu64",
          .cpus = 2,
          .disks = {{.node = "disk-root", .socket = "/run/d", .export_name = "web.root"},
                    {.node = "disk-data", .socket = "/run/e", .export_name = "data", .slot = 1}}};
}

MachineSpecification its_specification() {
  MachineSpecification specification;
  specification.machine_type = "pc-q35-7.2";
  specification.cpu_model = "qemu64";
  return specification;
}

TEST(MachineHibernation, ComesBackFromItsDocument) {
  const auto back = MUST(decode_machine_hibernation(encode(some()).dump()));
  EXPECT_EQ(encode(back), encode(some()));
}

TEST(MachineHibernation, WhatIsNoneIsRefused) {
  Json other = encode(some());
  other["version"] = 2;
  EXPECT_EQ(decode_machine_hibernation(other.dump()).error().kind(), ErrorKind::unsupported);
  other = encode(some());
  other["format"] = "berth-hibernation";
  EXPECT_EQ(decode_machine_hibernation(other.dump()).error().kind(), ErrorKind::corrupt);
  other = encode(some());
  other["pages"] = "../pages-1";
  EXPECT_EQ(decode_machine_hibernation(other.dump()).error().kind(), ErrorKind::corrupt);
  EXPECT_EQ(decode_machine_hibernation("{").error().kind(), ErrorKind::corrupt);
}

TEST(MachineHibernation, FitsTheMachineThatItIsOf) {
  std::vector<AttachedDisk> disks = some().disks;
  disks[0].socket = "/run/elsewhere";
  std::swap(disks[0], disks[1]);
  EXPECT_TRUE(check_fits(some(), its_specification(), disks));
  MachineSpecification larger = its_specification();
  larger.memory = 1 << 30;  // from its next start on
  EXPECT_TRUE(check_fits(some(), larger, disks));

  MachineSpecification other = its_specification();
  other.cpu_model = "max";
  EXPECT_EQ(check_fits(some(), other, disks).error().kind(), ErrorKind::precondition);
  disks[0].export_name = "another";
  EXPECT_THAT(check_fits(some(), its_specification(), disks).error().message(),
              testing::HasSubstr("disks are"));
  disks.pop_back();
  EXPECT_FALSE(check_fits(some(), its_specification(), disks));
}

}  // namespace
}  // namespace berth::machine
