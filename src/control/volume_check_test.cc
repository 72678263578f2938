#include "control/volume_check.h"

#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "async/shared_memory.h"
#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "disk/volume.h"
#include "machine/live_store.h"
#include "machine/temporary_directory.h"

namespace berth::control {
namespace {

namespace fs = std::filesystem;

class VolumeCheckTest : public testing::Test {
 protected:
  VolumeCheckTest() {
    fs::create_directory(directory_ / "disk");
    const auto loop = MUST(UringLoop::create());
    const auto volume = MUST(open_directory(*loop, directory_ / "disk", false));
    const auto memory = MUST(FileSharedMemoryStore::create_at(directory_ / "memory"));
    SystemRandom random;
    MUST(loop->run_until_complete(disk::Volume::create({.loop = *loop,
                                                        .directory = *volume,
                                                        .live_store = *memory,
                                                        .random = random,
                                                        .open_backing = {},
                                                        .report_event = {}},
                                                       {.size = 1U << 20U})));
    live_ = MUST(machine::live_directory({directory_ / "run"}, "disk"));
    machine::release_live_store({directory_ / "run"}, "disk");
  }
  ~VolumeCheckTest() override { fs::remove_all(live_); }
  VolumeCheckRequest request() {
    return {.directory = directory_ / "disk",
            .shown_as = "disk",
            .volume = "disk",
            .run_dir = directory_ / "run"};
  }
  const machine::TemporaryDirectory directory_;
  fs::path live_;  // where a keeper would have the live map
};

TEST_F(VolumeCheckTest, ACheckLeavesNoPlaceForALiveMapBehind) {
  EXPECT_TRUE(MUST(check_volume(request()))["sound"]);
  EXPECT_FALSE(fs::exists(live_));
  if (live_.string().starts_with("/dev/shm")) EXPECT_FALSE(fs::exists(live_.parent_path()));
}

TEST_F(VolumeCheckTest, ACheckThatFailsLeavesNoneEither) {
  fs::remove(directory_ / "disk/map");
  EXPECT_FALSE(check_volume(request()).has_value());
  EXPECT_FALSE(fs::exists(live_));
}

TEST_F(VolumeCheckTest, ALiveMapThatIsThereStays) {
  const auto store = MUST(machine::open_live_store({directory_ / "run"}, "disk"));
  MUST(store->create("map", 4096));
  EXPECT_TRUE(MUST(check_volume(request()))["sound"]);
  EXPECT_TRUE(fs::exists(live_ / "map"));
  MUST(machine::remove_live_store({directory_ / "run"}, "disk"));
}

}  // namespace
}  // namespace berth::control
