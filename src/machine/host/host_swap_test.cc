#include "machine/host/host_swap.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include <sys/stat.h>

#include <gmock/gmock.h>

#include "base/units.h"

namespace berth::machine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Below a directory that stands for the host's root.
class HostSwapTest : public testing::Test {
 protected:
  HostSwapTest() {
    std::string name = testing::TempDir() + "berth-swap-XXXXXX";
    CHECK(::mkdtemp(name.data()) != nullptr);
    root_ = name;
    put("/proc/swaps", heading);
    put("/state/.keep", "");
  }
  ~HostSwapTest() override { std::filesystem::remove_all(root_); }

  void put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string text(const std::string& path) const {
    std::ifstream file(root_ + path);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }
  void put_zram() {
    put("/sys/class/zram-control/hot_add", "3\n");
    put("/sys/class/zram-control/hot_remove", "");
    put("/sys/block/zram3/disksize", "");
  }
  void put_area(const std::string& device, const std::string& label) {
    std::string header(4096, '\0');
    header.replace(1052, label.size(), label);
    put(device, header);
  }
  HostSwap swap() {
    const auto note = [this](std::string word) { said_.push_back(std::move(word)); };
    return HostSwap({.state_dir = root_ + "/state", .run_dir = {}, .api_socket = {}, .root = root_},
                    {.format = [note](const std::string& path) -> Result<void> {
                       note("format " + path);
                       return {};
                     },
                     .begin = [this, note](const std::string& path, int) -> Result<void> {
                       if (refuses_) return failure(ErrorKind::unsupported, "no");
                       note("begin " + path);
                       return {};
                     },
                     .end = [note](const std::string& path) -> Result<void> {
                       note("end " + path);
                       return {};
                     }});
  }

  static constexpr const char* heading = "Filename\tType\tSize\tUsed\tPriority\n";
  std::string root_;
  std::vector<std::string> said_;
  bool refuses_ = false;
};

TEST_F(HostSwapTest, AKernelThatHasNothingIsRefusedClearly) {
  EXPECT_EQ(swap().add_zram(GiB).error().kind(), ErrorKind::unsupported);
  EXPECT_THAT(swap().add_zram(GiB).error().message(), HasSubstr("no zram"));
  EXPECT_EQ(swap().set_zswap(true).error().kind(), ErrorKind::unsupported);
  EXPECT_FALSE(swap().status().has_zram);
  EXPECT_EQ(swap().status().zswap, "missing");
  EXPECT_THAT(said_, IsEmpty());
}

TEST_F(HostSwapTest, AZramDeviceIsAddedSizedAndUsed) {
  put_zram();
  ASSERT_TRUE(swap().add_zram(GiB));
  EXPECT_EQ(text("/sys/block/zram3/disksize"), "1073741824");
  EXPECT_THAT(said_, ElementsAre("format /dev/zram3", "begin /dev/zram3"));
  EXPECT_EQ(text("/sys/class/zram-control/hot_remove"), "");
}

TEST_F(HostSwapTest, WhatCannotBeUsedIsTakenAwayAgain) {
  put_zram();
  refuses_ = true;
  EXPECT_EQ(swap().add_zram(GiB).error().kind(), ErrorKind::unsupported);
  EXPECT_EQ(text("/sys/class/zram-control/hot_remove"), "3");
  EXPECT_FALSE(swap().add_file(2 * MiB));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/state/swap"));
  EXPECT_EQ(swap().add_file(0).error().kind(), ErrorKind::invalid_argument);
}

TEST_F(HostSwapTest, AFileHasNoHolesAndIsNobodyElses) {
  ASSERT_TRUE(swap().add_file(2 * MiB));
  struct stat status{};
  ASSERT_EQ(::stat((root_ + "/state/swap").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 2 * MiB);
  EXPECT_GE(status.st_blocks * 512, status.st_size);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  put("/proc/swaps", heading + root_ + "/state/swap file 2048 0 -2\n");
  EXPECT_EQ(swap().add_file(2 * MiB).error().kind(), ErrorKind::already_exists);
}

TEST_F(HostSwapTest, OnlyWhatIsOursIsTakenAway) {
  put_zram();
  put_area("/dev/zram0", "theirs");
  put_area("/dev/zram3", "berth");
  put_area("/dev/zram4", "berthed");
  ASSERT_TRUE(swap().add_file(2 * MiB));
  said_.clear();
  put("/proc/swaps",
      heading + root_ +
          "/state/swap file 2048 0 -2\n/dev/zram0 partition 1 0 1\n/dev/zram3 "
          "partition 1024 0 100\n/dev/zram4 partition 1 0 1\n/dev/sda2 partition 1 0 "
          "1\n");
  EXPECT_EQ(swap().status().areas.size(), 5U);
  ASSERT_TRUE(swap().undo());
  EXPECT_THAT(said_, ElementsAre("end " + root_ + "/state/swap", "end /dev/zram3"));
  EXPECT_EQ(text("/sys/class/zram-control/hot_remove"), "3");
  EXPECT_FALSE(std::filesystem::exists(root_ + "/state/swap"));
}

TEST_F(HostSwapTest, ZswapIsSwitched) {
  put("/sys/module/zswap/parameters/enabled", "N\n");
  EXPECT_EQ(swap().status().zswap, "off");
  ASSERT_TRUE(swap().set_zswap(true));
  EXPECT_EQ(swap().status().zswap, "on");
}

}  // namespace
}  // namespace berth::machine
