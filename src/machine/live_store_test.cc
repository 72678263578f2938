#include "machine/live_store.h"

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;

TEST(LiveStore, IsInTheRunDirectoryIfThatIsMemory) {
  const std::string run_dir = "/dev/shm/berth-live-store-test";
  const RunLayout run{run_dir};
  EXPECT_EQ(live_directory(run, "disk").value(), run_dir + "/live/disk");
  fs::remove_all(run_dir);
}

TEST(LiveStore, IsInSharedMemoryOtherwiseAndGoesWithItsVolume) {
  const TemporaryDirectory directory;
  const RunLayout run{directory / "run"};
  const auto path = live_directory(run, "disk");
  ASSERT_TRUE(path) << path.error().message();
  if (path->starts_with(directory.path())) GTEST_SKIP() << "the temporary directory is on a tmpfs";
  EXPECT_TRUE(path->starts_with("/dev/shm/berth-")) << *path;
  const std::string directory_other = directory / "other";
  EXPECT_NE(live_directory({directory_other}, "disk").value(), *path);
  EXPECT_EQ(live_directory(run, "disk").value(), *path);

  const auto store = open_live_store(run, "disk");
  ASSERT_TRUE(store);
  ASSERT_TRUE((*store)->create("map", 4096));
  EXPECT_TRUE(fs::exists(*path + "/map"));
  release_live_store(run, "disk");  // there is a map in it
  EXPECT_TRUE(fs::exists(*path + "/map"));
  ASSERT_TRUE(remove_live_store(run, "disk"));
  EXPECT_FALSE(fs::exists(*path));
  EXPECT_TRUE(remove_live_store(run, "disk"));
  EXPECT_FALSE(fs::exists(fs::path(*path).parent_path()));
  release_live_store({directory_other}, "disk");
}

TEST(LiveStore, APlaceThatSomebodyElseHasTakenIsRefused) {
  const TemporaryDirectory directory;
  const RunLayout run{directory / "run"};
  const fs::path ours = fs::path(live_directory(run, "disk").value()).parent_path();
  if (ours.string().starts_with(directory.path()))
    GTEST_SKIP() << "the temporary directory is on a tmpfs";
  fs::permissions(ours, fs::perms::all);
  EXPECT_EQ(live_directory(run, "disk").error().kind(), ErrorKind::precondition);
  fs::remove(ours);
  fs::create_directory_symlink(directory.path(), ours);
  EXPECT_EQ(live_directory(run, "disk").error().kind(), ErrorKind::precondition);
  fs::remove(ours);
}

}  // namespace
}  // namespace berth::machine
