#include "machine/host/cgroup_layout.h"

#include <gmock/gmock.h>

namespace berth::machine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using Version = CgroupLayout::Version;

constexpr std::string_view v2_mounts =
    "22 27 0:21 / /proc rw,relatime shared:12 - proc proc rw\n"
    "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n"
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup2 cgroup2 rw,nsdelegate\n"
    "31 27 0:27 / /run rw,nosuid - tmpfs tmpfs rw,size=2468412k,mode=755,huge=advise\n";
constexpr std::string_view v1_mounts =
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda1 rw\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd\n";
constexpr std::string_view unified =
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

TEST(MountinfoTest, TakesFieldsOnBothSidesOfTheDash) {
  const auto mounts = parse_mountinfo(v2_mounts);
  ASSERT_EQ(mounts.size(), 4);
  EXPECT_EQ(mounts[1].type, "ext4");
  EXPECT_EQ(mounts[1].source, "/dev/vda1");
  EXPECT_EQ(mounts[2].point, "/sys/fs/cgroup");
  EXPECT_THAT(mounts[2].options, ElementsAre("rw", "nosuid"));
  EXPECT_EQ(option_value(mounts[3].super_options, "huge"), "advise");
  EXPECT_EQ(option_value(mounts[3].super_options, "hug"), "");
}

TEST(MountinfoTest, NamesMayHaveBlanksAndLinesMayBeBroken) {
  const auto mounts = parse_mountinfo(
      "1 2 0:1 / /srv/a\\040b\\134c rw - ext4 /dev/x rw\n1 2 0:1 / /x rw\nx - y\n"
      "1 2 0:1 / /short rw - ext4\n");
  ASSERT_EQ(mounts.size(), 1);
  EXPECT_EQ(mounts[0].point, "/srv/a b\\c");
}

TEST(MountinfoTest, APathLiesInItsDeepestAndLatestMount) {
  const auto mounts = parse_mountinfo(
      "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /srv rw - xfs /dev/b rw\n"
      "3 1 0:3 / /srv rw - btrfs /dev/c rw\n");
  EXPECT_EQ(mount_of(mounts, "/srv/berth")->type, "btrfs");
  EXPECT_EQ(mount_of(mounts, "/srv")->type, "btrfs");
  EXPECT_EQ(mount_of(mounts, "/srvx")->type, "ext4");
  EXPECT_EQ(mount_of({}, "/"), nullptr);
}

TEST(CgroupLayoutTest, V2OfASystemdHost) {
  const auto layout = cgroup_layout(parse_mountinfo(v2_mounts), "0::/system.slice/berth.service\n");
  EXPECT_EQ(layout.version, Version::v2);
  EXPECT_EQ(layout.v2_mount, "/sys/fs/cgroup");
  EXPECT_EQ(layout.v2_directory, "/sys/fs/cgroup/system.slice/berth.service");
  EXPECT_THAT(layout.v1_directories, IsEmpty());
}

TEST(CgroupLayoutTest, V1ControllersThatShareAMountShareADirectory) {
  const auto layout = cgroup_layout(parse_mountinfo(v1_mounts),
                                    "3:freezer:/\n2:cpu,cpuacct:/user:1\n1:name=systemd:/x\n");
  EXPECT_EQ(layout.version, Version::v1);
  EXPECT_EQ(layout.v2_directory, "");
  EXPECT_THAT(layout.v1_directories,
              ElementsAre(Pair("cpu", "/sys/fs/cgroup/cpu,cpuacct/user:1"),
                          Pair("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/user:1"),
                          Pair("freezer", "/sys/fs/cgroup/freezer")));
  EXPECT_THAT(layout.v1_named_directories, ElementsAre("/sys/fs/cgroup/systemd/x"));
}

TEST(CgroupLayoutTest, HybridHasBoth) {
  const auto layout = cgroup_layout(parse_mountinfo(std::string(v1_mounts) + std::string(unified)),
                                    "3:freezer:/a\n0::/\n");
  EXPECT_EQ(layout.version, Version::hybrid);
  EXPECT_EQ(layout.v2_directory, "/sys/fs/cgroup/unified");
  EXPECT_EQ(layout.v1_directories.at("freezer"), "/sys/fs/cgroup/freezer/a");
}

TEST(CgroupLayoutTest, InAContainerThePathIsSeenFromTheMountsRoot) {
  const auto mounts =
      parse_mountinfo("30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
  EXPECT_EQ(cgroup_layout(mounts, "0::/docker/abc\n").v2_directory, "/sys/fs/cgroup");
  EXPECT_EQ(cgroup_layout(mounts, "0::/docker/abc/x\n").v2_directory, "/sys/fs/cgroup/x");
  // A cgroup outside of the namespace's root cannot be seen.
  EXPECT_EQ(cgroup_layout(mounts, "0::/../other\n").v2_directory, "/sys/fs/cgroup");
}

TEST(CgroupLayoutTest, NoneWhereNoneIsMounted) {
  EXPECT_EQ(cgroup_layout({}, "").version, Version::none);
  EXPECT_EQ(to_string(Version::hybrid), "hybrid");
}

}  // namespace
}  // namespace berth::machine
