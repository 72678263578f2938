#include "machine/host/host_text.h"

#include <gmock/gmock.h>

namespace berth::machine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::string_view intel_bare_metal =
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6338\n"
    "flags\t\t: fpu vme de pse vmx smx est\nvmx flags\t: vnmi preemption_timer\nbugs\t\t:\n\n"
    "processor\t: 1\nmodel name\t: Intel(R) Xeon(R) Gold 6338\nflags\t\t: fpu vme de pse vmx smx\n";
constexpr std::string_view amd_nested =
    "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu svm hypervisor lahf_lm\n";
constexpr std::string_view guest_without_virtualization =
    "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu vmmcall hypervisor vmx_not svm_lock\n";
constexpr std::string_view arm =
    "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm\n";

TEST(CpuInfoTest, TellsBareMetalFromNestedFromGuestsWithoutVirtualization) {
  const CpuInfo intel = parse_cpuinfo(intel_bare_metal);
  EXPECT_EQ(intel.processors, 2);
  EXPECT_EQ(intel.model, "Intel(R) Xeon(R) Gold 6338");
  EXPECT_TRUE(intel.vmx && !intel.svm && !intel.hypervisor);

  const CpuInfo nested = parse_cpuinfo(amd_nested);
  EXPECT_TRUE(nested.svm && !nested.vmx && nested.hypervisor);

  const CpuInfo guest = parse_cpuinfo(guest_without_virtualization);
  EXPECT_TRUE(guest.has_flags && !guest.svm && !guest.vmx && guest.hypervisor);
}

TEST(CpuInfoTest, AnotherArchitectureHasProcessorsAndNoFlags) {
  EXPECT_EQ(parse_cpuinfo(arm).processors, 1);
  EXPECT_FALSE(parse_cpuinfo(arm).has_flags);
  EXPECT_EQ(parse_cpuinfo("").processors, 0);
}

TEST(MeminfoTest, FieldsAreBytes) {
  constexpr std::string_view text =
      "MemTotal:       24684084 kB\nMemAvailable:    1024 kB\n"
      "HugePages_Total:       0\nBroken: x kB\n";
  EXPECT_EQ(meminfo_bytes(text, "MemTotal"), 24684084ULL * 1024);
  EXPECT_EQ(meminfo_bytes(text, "MemAvailable"), 1024 * 1024);
  EXPECT_EQ(meminfo_bytes(text, "Mem"), std::nullopt);
  EXPECT_EQ(meminfo_bytes(text, "Broken"), std::nullopt);
  EXPECT_EQ(meminfo_bytes("MemTotal: 18446744073709551615 kB", "MemTotal"), std::nullopt);
}

TEST(SmapsTest, AFieldIsTakenFromItsMappingAlone) {
  constexpr std::string_view text =
      "7f0000000000-7f0000200000 rw-s 00000000 00:01 5 /memfd:x (deleted)\n"
      "Size:               2048 kB\nShmemPmdMapped:        0 kB\n"
      "7f0000200000-7f0000400000 rw-s 00000000 00:01 6 /memfd:y (deleted)\n"
      "Size:               2048 kB\nShmemPmdMapped:     2048 kB\n"
      "7f0000400000-7f0000600000 rw-p 00000000 00:00 0\nSize: 8 kB\n";
  EXPECT_EQ(smaps_bytes(text, 0x7f0000000000, "ShmemPmdMapped"), 0);
  EXPECT_EQ(smaps_bytes(text, 0x7f0000200000, "ShmemPmdMapped"), 2048 * 1024);
  EXPECT_EQ(smaps_bytes(text, 0x7f0000400000, "ShmemPmdMapped"), std::nullopt);
  EXPECT_EQ(smaps_bytes(text, 0x1000, "Size"), std::nullopt);
}

TEST(SwapsTest, PartitionsFilesAndZram) {
  const auto areas = parse_swaps(
      "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
      "/dev/zram0                              partition\t4194300\t\t1024\t\t100\n"
      "/swap\\040file                           file\t\t1048572\t\t0\t\t-2\n");
  ASSERT_EQ(areas.size(), 2);
  EXPECT_TRUE(areas[0].zram());
  EXPECT_EQ(areas[0].size_bytes, 4194300ULL * 1024);
  EXPECT_EQ(areas[0].used_bytes, 1024 * 1024);
  EXPECT_EQ(areas[1].type, "file");
  EXPECT_FALSE(areas[1].zram());
  EXPECT_THAT(parse_swaps("Filename\tType\tSize\tUsed\tPriority\n"), IsEmpty());
}

TEST(ChosenWordTest, IsTheOneInBrackets) {
  EXPECT_EQ(chosen_word("always within_size advise [never] deny force\n"), "never");
  EXPECT_EQ(chosen_word("tsc\n"), "tsc");
  EXPECT_EQ(chosen_word("[unclosed"), "[unclosed");
  EXPECT_EQ(chosen_word(""), "");
}

TEST(VersionTest, TheFirstOneInTheTextCounts) {
  EXPECT_EQ(find_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"),
            (Version{7, 2, 22}));
  EXPECT_EQ(find_version("qemu-nbd 10.0.2"), (Version{10, 0, 2}));
  EXPECT_EQ(find_version("nbdcopy 1.14.2\nlibnbd 1.16.0\n"), (Version{1, 14, 2}));
  EXPECT_EQ(find_version("6.1.0-18-amd64"), (Version{6, 1, 0}));
  EXPECT_EQ(find_version("6.18-rc3"), (Version{6, 18, 0}));
  EXPECT_EQ(find_version("x86_64 build 5"), std::nullopt);
  EXPECT_EQ(find_version("99999999999999999999.1"), std::nullopt);
  EXPECT_EQ(find_version(""), std::nullopt);
  EXPECT_LT((Version{7, 1, 9}), (Version{7, 2, 0}));
  EXPECT_EQ(to_string(Version{7, 2, 0}), "7.2.0");
}

TEST(AcceleratorsTest, AreTheWordsBelowTheHeading) {
  EXPECT_THAT(parse_accelerators("Accelerators supported in QEMU binary:\ntcg\nkvm\n"),
              ElementsAre("tcg", "kvm"));
  EXPECT_THAT(parse_accelerators("Accelerators supported in QEMU binary:\n"), IsEmpty());
}

TEST(SplitTest, LeavesNoEmptyParts) {
  EXPECT_THAT(split(",a,,b c,", ","), ElementsAre("a", "b c"));
  EXPECT_THAT(split("", ","), IsEmpty());
  EXPECT_EQ(leading_number("  12 kB"), 12);
  EXPECT_EQ(leading_number("kB"), std::nullopt);
}

}  // namespace
}  // namespace berth::machine
