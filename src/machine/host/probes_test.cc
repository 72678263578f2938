// Probes on made-up hosts: files below a prefix that say what other machines' kernels say.

#include "machine/host/probes.h"

#include <filesystem>
#include <fstream>

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "machine/host/doctor.h"
#include "machine/host/program.h"
#include "machine/host/scratch_file.h"
#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class ProbesTest : public testing::Test {
 protected:
  /// A file of the made-up host.
  void write(const std::string& path, std::string_view text) {
    const std::filesystem::path whole = directory_.path() + "/root" + path;
    std::filesystem::create_directories(whole.parent_path());
    write_text(whole, text);
  }
  HostView host() const {
    return {.state_dir = directory_ / "state",
            .run_dir = directory_ / "run",
            .api_socket = directory_ / "run/api.sock",
            .root = directory_ / "root"};
  }

  TemporaryDirectory directory_;
};

TEST_F(ProbesTest, KvmNeedsTheCpusFlagWhateverTheDeviceSays) {
  write("/proc/cpuinfo", "processor: 0\nflags: fpu hypervisor\n");
  write("/dev/kvm", "");  // opens
  Finding kvm = probe_kvm(host());
  EXPECT_EQ(kvm.state, CheckState::missing);
  EXPECT_THAT(kvm.detail, HasSubstr("/dev/kvm opens, but boots nothing"));
  EXPECT_THAT(kvm.remedy, HasSubstr("nested"));

  write("/proc/cpuinfo", "processor: 0\nflags: fpu\n");
  EXPECT_THAT(probe_kvm(host()).remedy, HasSubstr("firmware"));
}

TEST_F(ProbesTest, KvmNeedsADeviceThatMakesMachines) {
  write("/proc/cpuinfo", "processor: 0\nflags: fpu svm\n");
  Finding kvm = probe_kvm(host());
  EXPECT_EQ(kvm.state, CheckState::missing);
  EXPECT_EQ(kvm.remedy, "modprobe kvm_amd");
  write("/dev/kvm", "");  // not a device
  kvm = probe_kvm(host());
  EXPECT_EQ(kvm.state, CheckState::missing);
  EXPECT_THAT(kvm.detail, HasSubstr("makes no virtual machine"));
  write("/proc/cpuinfo", "processor: 0\nFeatures: fp\n");
  EXPECT_EQ(probe_kvm(host()).state, CheckState::unknown);
}

TEST_F(ProbesTest, ClockSourcesThatNeedASystemCallAreDegraded) {
  const std::string directory = "/sys/devices/system/clocksource/clocksource0";
  EXPECT_EQ(probe_clock_source(host()).state, CheckState::unknown);
  write(directory + "/current_clocksource", "kvm-clock\n");
  EXPECT_EQ(probe_clock_source(host()).state, CheckState::found);
  write(directory + "/current_clocksource", "hpet\n");
  write(directory + "/available_clocksource", "hpet acpi_pm\n");
  EXPECT_EQ(probe_clock_source(host()).detail, "hpet (available: hpet acpi_pm)");
}

TEST_F(ProbesTest, CgroupsNameWhatIsAbsent) {
  EXPECT_EQ(probe_cgroups(host()).state, CheckState::missing);
  write("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  write("/proc/self/cgroup", "0::/\n");
  write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
  EXPECT_EQ(probe_cgroups(host()).detail, "v2; v2: cpuset cpu io memory pids");
  write("/sys/fs/cgroup/cgroup.controllers", "cpu pids\n");
  const Finding cgroups = probe_cgroups(host());
  EXPECT_EQ(cgroups.state, CheckState::degraded);
  EXPECT_THAT(cgroups.detail, HasSubstr("absent: memory io"));
}

TEST_F(ProbesTest, AChildCgroupIsRemovedAgain) {
  write("/proc/self/mountinfo",
        "37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
        "38 31 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  write("/proc/self/cgroup", "1:freezer:/\n2:memory:/gone\n");
  std::filesystem::create_directories(directory_ / "root/sys/fs/cgroup/freezer");
  std::filesystem::create_directories(directory_ / "root/sys/fs/cgroup/memory");
  const Finding children = probe_cgroup_children(host());
  EXPECT_EQ(children.state, CheckState::degraded) << children.detail;
  EXPECT_THAT(children.detail, HasSubstr("v1 memory: /sys/fs/cgroup/memory/gone: No such file"));
  EXPECT_THAT(std::filesystem::is_empty(directory_ / "root/sys/fs/cgroup/freezer"), true);
  EXPECT_EQ(probe_freezer(host()).state, CheckState::missing);
  EXPECT_THAT(std::filesystem::is_empty(directory_ / "root/sys/fs/cgroup/freezer"), true);
}

TEST_F(ProbesTest, SwapIsCountedWithZramAndZswap) {
  write("/sys/module/zswap/parameters/enabled", "Y\n");
  EXPECT_EQ(probe_swap(host()).detail, "none; zswap on");
  write("/proc/swaps",
        "Filename Type Size Used Priority\n/dev/zram0 partition 1048576 0 100\n/swap file 1048576 "
        "0 -2\n");
  EXPECT_EQ(probe_swap(host()).detail, "2.0 GiB, 2.0 GiB free; 1.0 GiB of it zram; zswap on");
  EXPECT_EQ(probe_swap(host()).state, CheckState::found);
  write("/proc/swaps", "Filename Type Size Used Priority\n/swap file 1048576 1000000 -2\n");
  EXPECT_EQ(probe_swap(host()).state, CheckState::degraded);
}

TEST_F(ProbesTest, HugePagePoolsAreFoundOnceTheyHavePages) {
  const std::string pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
  EXPECT_THAT(probe_huge_pages_2m(host()).detail, HasSubstr("none of this size"));
  write(pool + "/nr_hugepages", "0\n");
  write(pool + "/free_hugepages", "0\n");
  write(pool + "/nr_overcommit_hugepages", "0\n");
  EXPECT_EQ(probe_huge_pages_2m(host()).state, CheckState::missing);
  write(pool + "/nr_hugepages", "512\n");
  write(pool + "/free_hugepages", "500\n");
  EXPECT_EQ(probe_huge_pages_2m(host()).detail, "512 pages, 500 free");
  write("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "4\n");
  write("/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "4\n");
  EXPECT_EQ(probe_huge_pages_1g(host()).state, CheckState::found);
}

TEST_F(ProbesTest, LimitsOfTheKernelAreReadAndJudged) {
  EXPECT_EQ(probe_memory_maps(host()).state, CheckState::unknown);
  write("/proc/sys/vm/max_map_count", "65530\n");
  EXPECT_EQ(probe_memory_maps(host()).state, CheckState::degraded);
  EXPECT_THAT(probe_memory_maps(host()).cost, HasSubstr("4.0 GiB"));
  write("/proc/sys/vm/max_map_count", "1048576\n");
  EXPECT_EQ(probe_memory_maps(host()).state, CheckState::found);

  write("/proc/sys/fs/aio-max-nr", "65536\n");
  write("/proc/sys/fs/aio-nr", "65000\n");
  EXPECT_EQ(probe_asynchronous_io(host()).state, CheckState::degraded);
}

TEST_F(ProbesTest, LittleMemoryIsDegraded) {
  write("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n");
  EXPECT_EQ(probe_memory(host()).detail, "8.0 GiB, 4.0 GiB available");
  write("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 1024 kB\n");
  EXPECT_EQ(probe_memory(host()).state, CheckState::degraded);
}

TEST_F(ProbesTest, TheFileSystemsKindIsThatOfTheStateDirectorysMount) {
  const std::string here = std::filesystem::canonical(directory_.path());
  write("/proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/a rw\n");
  EXPECT_EQ(probe_file_system(host()).detail, "ext4 on /dev/a, mounted at /");
  for (const std::string type : {"nfs4", "tmpfs", "overlay", "fuse.sshfs", "9p"}) {
    write("/proc/self/mountinfo",
          fmt::format("1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {} rw - {} x rw\n", here, type));
    EXPECT_EQ(probe_file_system(host()).state, CheckState::degraded) << type;
  }
}

TEST_F(ProbesTest, ReadAheadIsThatOfTheDiskOrOfThePartitionsDisk) {
  EXPECT_EQ(probe_read_ahead(host()).state, CheckState::unknown);
  struct stat status{};
  ASSERT_EQ(::stat(directory_.path().c_str(), &status), 0);
  const std::string device =
      fmt::format("/sys/dev/block/{}:{}", major(status.st_dev), minor(status.st_dev));
  write(device + "/partition", "1\n");
  write("/sys/dev/block/queue/read_ahead_kb", "8192\n");
  const Finding much = probe_read_ahead(host());
  EXPECT_EQ(much.state, CheckState::degraded);
  EXPECT_EQ(much.detail, "8.0 MiB");
  EXPECT_THAT(much.remedy, HasSubstr("echo 512 >" + device + "/../queue/read_ahead_kb"));
  write(device + "/queue/read_ahead_kb", "128\n");
  EXPECT_EQ(probe_read_ahead(host()).state, CheckState::found);
}

TEST_F(ProbesTest, AStateDirectoryIsThereOrCanBeMadeOrIsMissing) {
  EXPECT_THAT(probe_state_directory(host()).detail, HasSubstr("is not there yet"));
  EXPECT_EQ(probe_state_directory(host()).state, CheckState::found);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "state"));
  std::filesystem::create_directory(directory_ / "state");
  EXPECT_EQ(probe_state_directory(host()).detail, directory_ / "state" + " takes files");

  HostView elsewhere = host();
  write_text(directory_ / "file", "");
  std::filesystem::create_symlink("nowhere", directory_ / "link");
  for (const std::string path : {"/proc/berth", "/proc/berth/state", "/dev/null/state"}) {
    elsewhere.state_dir = path;
    EXPECT_EQ(probe_state_directory(elsewhere).state, CheckState::missing) << path;
  }
  for (const std::string name : {"file", "file/state", "link", "link/state"}) {
    elsewhere.state_dir = directory_ / name;
    EXPECT_EQ(probe_state_directory(elsewhere).state, CheckState::missing) << name;
  }
}

TEST_F(ProbesTest, WhereNoFileCanBeMadeWhatFilesCanDoIsUnknown) {
  HostView elsewhere = host();
  elsewhere.state_dir = "/proc/berth";
  for (const auto probe : {probe_file_locks, probe_sparse_files, probe_punch_hole, probe_zero_range,
                           probe_direct_io, probe_reflink})
    EXPECT_EQ(probe(elsewhere).state, CheckState::unknown);
}

TEST_F(ProbesTest, ScratchFilesHaveNoName) {
  const auto file = make_scratch_file(directory_.path());
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ(::write(file->get(), "x", 1), 1);
  EXPECT_THAT(directory_.names(), IsEmpty());
}

TEST_F(ProbesTest, TheDaemonsSocketMayBeAbsentOrLeftBehind) {
  EXPECT_EQ(probe_daemon(host()).state, CheckState::missing);
  std::filesystem::create_directory(directory_ / "run");
  write_text(directory_ / "run/api.sock", "");
  const Finding left = probe_daemon(host());
  EXPECT_EQ(left.state, CheckState::missing);
  EXPECT_THAT(left.detail, HasSubstr("nobody answers"));
}

TEST_F(ProbesTest, ALongRunDirectoryHasNoRoomForSockets) {
  HostView elsewhere = host();
  elsewhere.run_dir = directory_ / std::string(30, 'x');
  EXPECT_EQ(probe_run_directory(elsewhere).state, CheckState::degraded);
  elsewhere.run_dir = directory_ / std::string(120, 'x');
  EXPECT_EQ(probe_run_directory(elsewhere).state, CheckState::missing);
}

TEST_F(ProbesTest, AProgramIsFoundRunAndEnded) {
  EXPECT_EQ(find_program("no-such-program-of-berth"), "");
  const std::string shell = find_program("sh");
  ASSERT_FALSE(shell.empty());
  EXPECT_EQ(run_program({shell, "-c", "echo out; echo err >&2"}, std::chrono::seconds(30)),
            "out\nerr\n");
  const auto failed = run_program({shell, "-c", "exit 3"}, std::chrono::seconds(30));
  EXPECT_EQ(failed.error().kind(), ErrorKind::io_error);
  // It would wait for a day, and is ended with its limit.
  const auto late = run_program({shell, "-c", "exec sleep 86400"}, std::chrono::milliseconds(10));
  EXPECT_EQ(late.error().kind(), ErrorKind::timed_out);
  EXPECT_FALSE(run_program({directory_ / "nothing"}, std::chrono::seconds(30)));
}

TEST_F(ProbesTest, EveryCheckHasItsTextsAndNothingIsLeftBehind) {
  HostView real = host();
  real.root.clear();
  std::filesystem::create_directory(directory_ / "state");
  std::filesystem::create_directory(directory_ / "run");
  const auto checks = examine_host(real);
  EXPECT_GT(checks.size(), 40);
  for (const HostCheck& check : checks) {
    EXPECT_THAT(check.finding.detail, Not(IsEmpty())) << check.name;
    EXPECT_EQ(check.finding.state == CheckState::found, check.finding.cost.empty()) << check.name;
    EXPECT_EQ(check.finding.state == CheckState::found, check.finding.remedy.empty()) << check.name;
    EXPECT_THAT(check.finding.detail, Not(HasSubstr("\n"))) << check.name;
  }
  EXPECT_THAT(missing_essentials(checks), IsEmpty());  // these tests run on io_uring too
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "state"));
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "run"));
}

TEST(HostCheckTest, OnlyWhatIsEssentialAndMissingCounts) {
  const auto check = [](std::string_view name, CheckNeed need, CheckState state) {
    return HostCheck{.name = name, .group = "g", .need = need, .finding = {state, "", "", ""}};
  };
  EXPECT_THAT(missing_essentials({check("a", CheckNeed::essential, CheckState::missing),
                                  check("b", CheckNeed::essential, CheckState::unknown),
                                  check("c", CheckNeed::essential, CheckState::degraded),
                                  check("d", CheckNeed::useful, CheckState::missing)}),
              testing::ElementsAre("a"));
}

}  // namespace
}  // namespace berth::machine
