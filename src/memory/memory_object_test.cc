#include "memory/memory_object.h"

#include <filesystem>

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/test_support.h"

namespace berth::memory {
namespace {

using testing::HasSubstr;

class MemoryObjectTest : public testing::Test {
 protected:
  Result<std::string> create(std::uint64_t size) {
    return create_memory_object(memory_dir_, id_, size, {.uid = ::geteuid(), .gid = ::getegid()});
  }
  static mode_t mode_of(const std::string& path) {
    struct stat status{};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777U;
  }

  ScratchDirectory directory_{memory_place};
  std::string memory_dir_ = directory_ / "memory";
  SystemRandom random_;
  Id128 id_ = random_.id();
};

TEST_F(MemoryObjectTest, IsAFileOfZerosThatTakesNoSpace) {
  const std::string path = MUST(create(64 * MiB));
  EXPECT_EQ(path, memory_dir_ + '/' + id_.to_string() + "/ram");
  EXPECT_EQ(path, memory_object_path(memory_dir_, id_));
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_size, static_cast<off_t>(64 * MiB));
  EXPECT_EQ(status.st_blocks, 0);
}

TEST_F(MemoryObjectTest, IsItsOwnersAloneWhateverTheUmask) {
  const mode_t before = ::umask(0777);
  const auto created = create(MiB);
  ::umask(before);
  const std::string path = MUST(Result(created));
  EXPECT_EQ(mode_of(path), 0600U);
  EXPECT_EQ(mode_of(memory_dir_), 0711U);
  EXPECT_EQ(mode_of(memory_dir_ + '/' + id_.to_string()), 0711U);
}

TEST_F(MemoryObjectTest, BelongsToTheUserThatQemuRunsAsAndItsDirectoryDoesNot) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root gives files away";
  const std::string path =
      MUST(create_memory_object(memory_dir_, id_, MiB, {.uid = 12345, .gid = 54321}));
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 12345U);
  EXPECT_EQ(status.st_gid, 54321U);
  ASSERT_EQ(::stat((memory_dir_ + '/' + id_.to_string()).c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 0U);
}

TEST_F(MemoryObjectTest, GoesWithItsDirectoryAndMayBeGoneAlready) {
  const std::string path = MUST(create(MiB));
  MUST(remove_memory_object(memory_dir_, id_));
  EXPECT_FALSE(std::filesystem::exists(memory_dir_ + '/' + id_.to_string()));
  MUST(remove_memory_object(memory_dir_, id_));
  // Cut short between the two steps.
  MUST(create(MiB));
  std::filesystem::remove(path);
  MUST(remove_memory_object(memory_dir_, id_));
  EXPECT_FALSE(std::filesystem::exists(memory_dir_ + '/' + id_.to_string()));
}

TEST_F(MemoryObjectTest, IsMadeOnce) {
  const std::string path = MUST(create(MiB));
  write_at(path, 0, "kept");
  const auto again = create(MiB);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(read_at(path, 0, 4), "kept");
}

TEST_F(MemoryObjectTest, ASizeThatIsNotOfPagesIsRefused) {
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{4097}}) {
    const auto created = create(size);
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().kind(), ErrorKind::invalid_argument);
  }
}

TEST_F(MemoryObjectTest, MoreThanTheFileSystemCanEverHoldIsALimitAndLeavesNothingBehind) {
  const auto created = create(std::uint64_t{1} << 50);
  ASSERT_FALSE(created);
  EXPECT_EQ(created.error().kind(), ErrorKind::limit) << created.error().message();
  EXPECT_FALSE(std::filesystem::exists(memory_dir_ + '/' + id_.to_string()));
}

TEST_F(MemoryObjectTest, AnotherFileSystemThanTmpfsIsRefused) {
  const auto created = create_memory_object("/proc", id_, MiB, {});
  ASSERT_FALSE(created);
  EXPECT_EQ(created.error().kind(), ErrorKind::unsupported);
}

TEST_F(MemoryObjectTest, ADirectoryWhoseParentIsMissingIsNotFound) {
  const auto created = create_memory_object(directory_ / "no/memory", id_, MiB, {});
  ASSERT_FALSE(created);
  EXPECT_EQ(created.error().kind(), ErrorKind::not_found);
}

TEST_F(MemoryObjectTest, CountsWhatOtherMachinesMayStillTake) {
  std::filesystem::create_directory(memory_dir_);
  const SmallFileSystem small(memory_dir_, "64m");
  if (!small.mounted()) GTEST_SKIP() << "no tmpfs can be mounted here";
  const Id128 other = random_.id();
  const std::string path = MUST(create_memory_object(memory_dir_, other, 40 * MiB, {}));
  const auto refused = create(32 * MiB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::no_space);
  EXPECT_THAT(refused.error().message(), HasSubstr("may still take 40.0 MiB"));
  EXPECT_FALSE(std::filesystem::exists(memory_dir_ + '/' + id_.to_string()));

  // The same, whether the other one has its memory already or not.
  write_at(path, 0, std::string(30 * MiB, 'x'));
  EXPECT_FALSE(create(32 * MiB));
  MUST(create(20 * MiB));
  MUST(remove_memory_object(memory_dir_, other));
  MUST(create_memory_object(memory_dir_, random_.id(), 40 * MiB, {}));
}

TEST_F(MemoryObjectTest, SealedIsNobodysToWrite) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root gives files away";
  const std::string path =
      MUST(create_memory_object(memory_dir_, id_, MiB, {.uid = 12345, .gid = 54321}));
  MUST(seal_memory_object(path));
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 0U);
  EXPECT_EQ(status.st_mode & 07777U, 0444U);
}

TEST_F(MemoryObjectTest, IsNotSealedWhileSomebodyWritesToIt) {
  const std::string path = MUST(create(MiB));
  TrackedProcess machine;
  machine.tell("map", path, MiB);
  const auto sealed = seal_memory_object(path);
  ASSERT_FALSE(sealed);
  EXPECT_EQ(sealed.error().kind(), ErrorKind::in_use);
  EXPECT_EQ(mode_of(path), 0600U);
  machine.kill();
  MUST(seal_memory_object(path));
  EXPECT_EQ(mode_of(path), 0444U);
}

}  // namespace
}  // namespace berth::memory
