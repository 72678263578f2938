#include "async/shared_memory.h"

#include <csignal>
#include <filesystem>
#include <memory>
#include <string>

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/boot_id.h"
#include "async/test_support.h"
#include "base/units.h"

namespace berth {
namespace {

class SharedMemoryTest : public testing::Test {
 protected:
  ScratchDirectory scratch_;
  std::unique_ptr<FileSharedMemoryStore> store_ =
      FileSharedMemoryStore::create_at(scratch_ / "run/live").value();
};

TEST_F(SharedMemoryTest, IsZeroAndPageAligned) {
  const auto memory = MUST(store_->create("map", MiB));
  EXPECT_EQ(memory->bytes().size(), MiB);
  EXPECT_TRUE(is_zero(memory->bytes()));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->bytes().data()) % 4096, 0U);
}

TEST_F(SharedMemoryTest, OutlivesItsMappingAndItsStore) {
  {
    MUST(store_->create("map", MiB))->bytes()[12345] = std::byte{7};
  }
  store_ = MUST(FileSharedMemoryStore::create_at(scratch_ / "run/live"));
  const auto memory = MUST(store_->open("map"));
  EXPECT_EQ(memory->bytes().size(), MiB);
  EXPECT_EQ(memory->bytes()[12345], std::byte{7});
}

TEST_F(SharedMemoryTest, OutlivesAProcessThatIsKilled) {
  const auto memory = MUST(store_->create("map", MiB));
  const pid_t child = ::fork();
  if (child == 0) {
    MUST(store_->open("map"))->bytes()[4096] = std::byte{9};
    ::kill(::getpid(), SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(memory->bytes()[4096], std::byte{9});
}

TEST_F(SharedMemoryTest, IsSparse) {
  const auto memory = MUST(store_->create("map", 16 * GiB));
  memory->bytes()[8 * GiB] = std::byte{1};
  struct stat status{};
  ASSERT_EQ(::stat((scratch_ / "run/live/map").c_str(), &status), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), 16 * GiB);
  EXPECT_LT(status.st_blocks * 512, 1 << 20);
  EXPECT_EQ(status.st_mode & 0077U, 0U);
}

TEST_F(SharedMemoryTest, ANewRegionTakesTheOldOnesPlaceAndLeavesItsMappingsAlone) {
  const auto old = MUST(store_->create("map", 4096));
  old->bytes()[0] = std::byte{1};
  const auto fresh = MUST(store_->create("map", 8192));
  EXPECT_TRUE(is_zero(fresh->bytes()));
  EXPECT_EQ(old->bytes()[0], std::byte{1});
  EXPECT_EQ(MUST(store_->open("map"))->bytes().size(), 8192U);
}

TEST_F(SharedMemoryTest, WhatACreateThatDiedLeftBehindIsOverwritten) {
  {
    MUST(store_->create("x", 4096))->bytes()[0] = std::byte{5};
  }
  std::filesystem::rename(scratch_ / "run/live/x", scratch_ / "run/live/.map.new");
  EXPECT_EQ(store_->open("map").error().kind(), ErrorKind::not_found);
  EXPECT_TRUE(is_zero(MUST(store_->create("map", 4096))->bytes()));
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "run/live/.map.new"));
}

TEST_F(SharedMemoryTest, WhatIsMissingIsNotFound) {
  EXPECT_EQ(store_->open("map").error().kind(), ErrorKind::not_found);
  EXPECT_EQ(store_->remove("map").error().kind(), ErrorKind::not_found);
  MUST(store_->create("map", 1));
  EXPECT_TRUE(store_->remove("map").has_value());
  EXPECT_EQ(store_->open("map").error().kind(), ErrorKind::not_found);
}

TEST_F(SharedMemoryTest, BadNamesAndSizesAreRefused) {
  for (const std::string name : {"", ".", "..", ".hidden", "a/b", "../x"}) {
    EXPECT_EQ(store_->create(name, 4096).error().kind(), ErrorKind::invalid_argument) << name;
    EXPECT_EQ(store_->open(name).error().kind(), ErrorKind::invalid_argument) << name;
    EXPECT_EQ(store_->remove(name).error().kind(), ErrorKind::invalid_argument) << name;
  }
  EXPECT_EQ(store_->create("map", 0).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(store_->create("map", UINT64_MAX).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(FileSharedMemoryStore::create_at("relative").error().kind(),
            ErrorKind::invalid_argument);
}

TEST_F(SharedMemoryTest, FollowsNoLinks) {
  ASSERT_EQ(::symlink("/etc/passwd", (scratch_ / "run/live/map").c_str()), 0);
  EXPECT_FALSE(store_->open("map").has_value());
}

TEST_F(SharedMemoryTest, KnowsTheBoot) {
  EXPECT_EQ(store_->boot_id(), MUST(read_boot_id()));
  EXPECT_EQ(store_->boot_id().size(), 36U);
}

}  // namespace
}  // namespace berth
