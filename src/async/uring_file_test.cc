// What is checked here: the promises of file.h on real files, on file systems with and without the
// calls that make it easy, and those on names that keep the engine away from what is not its own.
#include "async/uring_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/test_support.h"
#include "base/aligned_buffer.h"
#include "base/units.h"

namespace berth {
namespace {

AlignedBuffer pattern(std::size_t size, int seed) {
  AlignedBuffer buffer(size);
  for (std::size_t i = 0; i < size; ++i)
    buffer.data()[i] = static_cast<std::byte>((i * 31 + i / 4096 + seed) & 0xff);
  return buffer;
}

bool same(Bytes a, Bytes b) { return std::ranges::equal(a, b); }

class UringFileTest : public LoopTest {
 protected:
  UringFileTest() : directory_(MUST(open_directory(*loop_, scratch_.path(), false))) {}
  std::unique_ptr<File> open(const std::string& name, OpenOptions options) {
    return MUST(directory_->open(name, options));
  }

  ScratchDirectory scratch_;
  std::unique_ptr<Directory> directory_;
};

Task<Result<void>> write_and_read_back(File& file, std::uint64_t offset, std::size_t size) {
  const AlignedBuffer written = pattern(size, 1);
  const AlignedBuffer read = AlignedBuffer::zeroed(size);
  CO_TRY(co_await file.write(offset, written.bytes()));
  EXPECT_EQ(CO_TRY(co_await file.read(offset, read.bytes())), size);
  EXPECT_TRUE(same(written.bytes(), read.bytes()));
  CO_TRY(co_await file.sync());
  co_return Result<void>{};
}

TEST_F(UringFileTest, GivesBackWhatWasWritten) {
  for (const bool direct : {false, true}) {
    const auto file = open(direct ? "direct" : "cached", {.create = true, .direct = direct});
    run_test(*loop_, write_and_read_back(*file, 8192, 4096));
    run_test(*loop_, write_and_read_back(*file, MiB, 8 * MiB));
  }
}

TEST_F(UringFileTest, ReadsEndAtTheEndOfTheFile) {
  for (const bool direct : {false, true}) {
    const auto file = open(direct ? "direct" : "cached", {.create = true, .direct = direct});
    ASSERT_TRUE(file->truncate(3 * 4096 + 100));
    const auto read = [](File& from) -> Task<Result<void>> {
      const AlignedBuffer buffer(64 * KiB);
      EXPECT_EQ(CO_TRY(co_await from.read(0, buffer.bytes())), 3U * 4096 + 100);
      EXPECT_EQ(CO_TRY(co_await from.read(8192, buffer.bytes())), 4096U + 100);
      EXPECT_EQ(CO_TRY(co_await from.read(12288, buffer.first(4096))), 100U);
      EXPECT_EQ(CO_TRY(co_await from.read(16384, buffer.bytes())), 0U);
      EXPECT_EQ(CO_TRY(co_await from.read(TiB, buffer.bytes())), 0U);
      EXPECT_EQ(CO_TRY(co_await from.read(0, MutableBytes{})), 0U);
      co_return Result<void>{};
    };
    run_test(*loop_, read(*file));
  }
}

TEST_F(UringFileTest, RangesThatNoFileHasAreRefused) {
  const auto file = open("data", {.create = true});
  const auto attempt = [](File& on) -> Task<Result<void>> {
    const AlignedBuffer buffer = AlignedBuffer::zeroed(4096);
    EXPECT_EQ((co_await on.read(UINT64_MAX, buffer.bytes())).error().kind(),
              ErrorKind::invalid_argument);
    EXPECT_EQ((co_await on.write(UINT64_MAX - 4095, buffer.bytes())).error().kind(),
              ErrorKind::invalid_argument);
    EXPECT_EQ((co_await on.write(INT64_MAX, buffer.bytes())).error().kind(),
              ErrorKind::invalid_argument);
    EXPECT_EQ((co_await on.punch(4096, UINT64_MAX - 100)).error().kind(),
              ErrorKind::invalid_argument);
    EXPECT_EQ((co_await on.zero(UINT64_MAX, 1)).error().kind(), ErrorKind::invalid_argument);
    co_return Result<void>{};
  };
  run_test(*loop_, attempt(*file));
  EXPECT_EQ(file->size().value(), 0U);
  EXPECT_EQ(file->truncate(UINT64_MAX).error().kind(), ErrorKind::invalid_argument);
}

TEST_F(UringFileTest, ErrorsSayWhatFailedAndWhere) {
  {
    open("data", {.create = true});
  }
  const auto file = open("data", {.read_only = true});
  const auto attempt = [](File& on, const std::string& path) -> Task<Result<void>> {
    const AlignedBuffer buffer = AlignedBuffer::zeroed(4096);
    const auto outcome = co_await on.write(8192, buffer.bytes());
    EXPECT_EQ(outcome.error().kind(), ErrorKind::read_only);
    EXPECT_EQ(outcome.error().message(),
              "cannot write '" + path + "' at offset 8192, 4096 bytes: Read-only file system");
    EXPECT_EQ((co_await on.punch(0, 4096)).error().kind(), ErrorKind::read_only);
    co_return Result<void>{};
  };
  run_test(*loop_, attempt(*file, scratch_ / "data"));
}

TEST_F(UringFileTest, DirectReadsAndWritesNeedAlignedRanges) {
  const auto file = open("data", {.create = true, .direct = true});
  if (!static_cast<UringFile&>(*file).direct())
    GTEST_SKIP() << "no O_DIRECT in " << scratch_.path();
  const auto attempt = [](File& on) -> Task<Result<void>> {
    const AlignedBuffer buffer = AlignedBuffer::zeroed(8192);
    EXPECT_EQ((co_await on.write(1, buffer.first(4096))).error().kind(),
              ErrorKind::invalid_argument);
    co_return Result<void>{};
  };
  run_test(*loop_, attempt(*file));
}

TEST_F(UringFileTest, FallsBackWhereTheFileSystemHasNoDirectIo) {
  const auto process = MUST(open_directory(*loop_, "/proc/self", false));
  const auto file = MUST(process->open("status", {.read_only = true, .direct = true}));
  EXPECT_FALSE(static_cast<UringFile&>(*file).direct());
  const auto read = [](File& from) -> Task<Result<void>> {
    std::array<std::byte, 5> buffer{};
    EXPECT_EQ(CO_TRY(co_await from.read(0, buffer)), buffer.size());
    EXPECT_EQ(as_text(buffer), "Name:");
    co_return Result<void>{};
  };
  run_test(*loop_, read(*file));
}

Task<Result<void>> clear_and_check(File& file) {
  const AlignedBuffer data = pattern(MiB, 3);
  const AlignedBuffer read(MiB);
  CO_TRY(co_await file.write(0, data.bytes()));
  CO_TRY(co_await file.punch(64 * KiB, 64 * KiB));
  CO_TRY(co_await file.zero(256 * KiB, 128 * KiB));
  EXPECT_EQ(CO_TRY(co_await file.read(0, read.bytes())), MiB);
  EXPECT_TRUE(same(data.first(64 * KiB), read.first(64 * KiB)));
  EXPECT_TRUE(is_zero(read.bytes().subspan(64 * KiB, 64 * KiB)));
  EXPECT_TRUE(
      same(data.bytes().subspan(128 * KiB, 128 * KiB), read.bytes().subspan(128 * KiB, 128 * KiB)));
  EXPECT_TRUE(is_zero(read.bytes().subspan(256 * KiB, 128 * KiB)));
  EXPECT_TRUE(same(data.bytes().subspan(384 * KiB), read.bytes().subspan(384 * KiB)));
  EXPECT_EQ(CO_TRY(file.next_hole(0)), 64 * KiB);
  EXPECT_EQ(CO_TRY(file.next_data(64 * KiB)), 128 * KiB);
  EXPECT_EQ(CO_TRY(file.next_data(MiB)), MiB);
  EXPECT_EQ(CO_TRY(file.next_hole(2 * MiB)), MiB);

  CO_TRY(co_await file.punch(MiB - 4096, 2 * MiB));
  CO_TRY(co_await file.punch(8 * MiB, MiB));
  CO_TRY(co_await file.punch(0, 0));
  EXPECT_EQ(CO_TRY(file.size()), MiB) << "a punch changed the size";
  CO_TRY(co_await file.zero(MiB - 4096, 8192));
  EXPECT_EQ(CO_TRY(file.size()), MiB + 4096) << "a zero grows the file, like a write";
  EXPECT_EQ(CO_TRY(co_await file.read(MiB - 8192, read.bytes())), 12288U);
  EXPECT_TRUE(same(data.bytes().last(8192).first(4096), read.first(4096)));
  EXPECT_TRUE(is_zero(read.bytes().subspan(4096, 8192)));
  co_return Result<void>{};
}

TEST_F(UringFileTest, PunchAndZeroClearTheirRange) {
  run_test(*loop_, clear_and_check(*open("cached", {.create = true})));
  run_test(*loop_, clear_and_check(*open("direct", {.create = true, .direct = true})));
}

TEST_F(UringFileTest, PunchAndZeroWorkWhereTheFileSystemCannotZeroARange) {
  if (::access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no tmpfs at /dev/shm";
  const ScratchDirectory scratch("/dev/shm");
  const auto directory = MUST(open_directory(*loop_, scratch.path(), false));
  run_test(*loop_, clear_and_check(*MUST(directory->open("data", {.create = true}))));
}

TEST_F(UringFileTest, AFullDiskIsNoSpace) {
  const ScratchDirectory scratch;
  const SmallFileSystem small(scratch.path(), "1m");
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << std::strerror(errno);
  const auto directory = MUST(open_directory(*loop_, scratch.path(), false));
  const auto file = MUST(directory->open("data", {.create = true}));
  const auto fill = [](File& to) -> Task<Result<void>> {
    const AlignedBuffer buffer = pattern(4 * MiB, 1);
    const auto outcome = co_await to.write(0, buffer.bytes());
    EXPECT_FALSE(outcome.has_value());
    if (!outcome)
      EXPECT_EQ(outcome.error().kind(), ErrorKind::no_space) << outcome.error().message();
    CO_TRY(co_await to.punch(0, 4 * MiB));
    CO_TRY(co_await to.write(0, buffer.first(4096)));
    co_return Result<void>{};
  };
  run_test(*loop_, fill(*file));
}

TEST_F(UringFileTest, MoreRequestsThanTheKernelIsGivenAllEnd) {
  const auto file = open("data", {.create = true});
  ASSERT_TRUE(file->truncate(16 * MiB));
  Gate gate(*loop_);
  std::size_t ended = 0;
  const auto write_one = [](File& to, std::uint64_t block, std::size_t& count) -> Task<> {
    const AlignedBuffer buffer = pattern(512, static_cast<int>(block));
    EXPECT_TRUE((co_await to.write(block * 512, buffer.bytes())).has_value());
    if (block % 3 == 0) EXPECT_TRUE((co_await to.punch(64 * MiB, 100)).has_value());
    ++count;
  };
  const std::size_t requests = 3 * UringFile::operations_max + 7;
  for (std::size_t i = 0; i < requests; ++i) gate.spawn(write_one(*file, i, ended));
  run(*loop_, gate.drained());
  EXPECT_EQ(ended, requests);
  const auto check = [](File& from, std::size_t count) -> Task<Result<void>> {
    const AlignedBuffer buffer(512);
    for (std::uint64_t block = 0; block < count; ++block) {
      CO_TRY(co_await from.read(block * 512, buffer.bytes()));
      EXPECT_TRUE(same(buffer.bytes(), pattern(512, static_cast<int>(block)).bytes())) << block;
    }
    co_return Result<void>{};
  };
  run_test(*loop_, check(*file, requests));
}

TEST_F(UringFileTest, TheDescriptorLivesUntilTheLastRequestHasEnded) {
  const AlignedBuffer buffer = pattern(MiB, 9);
  FileRequest request;
  request.kind = FileRequest::Kind::write;
  request.data = buffer.data();
  request.length = buffer.size();
  request.result = 1;
  request.waiter = std::noop_coroutine();
  {
    const auto file = open("data", {.create = true, .lock = true});
    file->submit(request);
  }
  EXPECT_EQ(directory_->open("data", {.lock = true}).error().kind(), ErrorKind::in_use)
      << "the lock went before the last write had ended";
  const auto wait = [](Loop& loop, const FileRequest& until) -> Task<> {
    while (until.result == 1) co_await loop.yield();
  };
  run(*loop_, wait(*loop_, request));
  EXPECT_EQ(request.result, static_cast<std::int64_t>(buffer.size()));
  EXPECT_TRUE(directory_->open("data", {.lock = true}).has_value());
}

TEST_F(UringFileTest, ASecondLockIsRefusedUntilTheFirstGoes) {
  auto first = open("data", {.create = true, .lock = true});
  const auto second = directory_->open("data", {.lock = true});
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().kind(), ErrorKind::in_use);
  EXPECT_TRUE(directory_->open("data", {.read_only = true}).has_value())
      << "the lock is among those who ask for it";
  first.reset();
  EXPECT_TRUE(directory_->open("data", {.lock = true}).has_value());
}

TEST_F(UringFileTest, TheLockOfAKilledProcessIsFree) {
  {
    open("data", {.create = true});
  }
  std::array<int, 2> ready{};
  ASSERT_EQ(::pipe2(ready.data(), O_CLOEXEC), 0);
  const std::string path = scratch_ / "data";
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(path.c_str(), O_RDWR);
    const char answer = ::flock(fd, LOCK_EX | LOCK_NB) == 0 ? 'y' : 'n';
    if (::write(ready[1], &answer, 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char answer = 0;
  ASSERT_EQ(::read(ready[0], &answer, 1), 1);
  ASSERT_EQ(answer, 'y');
  EXPECT_EQ(directory_->open("data", {.lock = true}).error().kind(), ErrorKind::in_use);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
  EXPECT_TRUE(directory_->open("data", {.lock = true}).has_value());
}

TEST_F(UringFileTest, TheIdentityChangesWithContentAndFile) {
  const auto file = open("data", {.create = true});
  const FileIdentity before = MUST(file->identity());
  EXPECT_EQ(MUST(open("data", {})->identity()), before);
  EXPECT_EQ(before.device_id, "");
  EXPECT_NE(before.inode, 0U);
  ASSERT_TRUE(file->truncate(4096));
  EXPECT_NE(MUST(file->identity()), before);
  EXPECT_NE(MUST(open("other", {.create = true})->identity()).inode, before.inode);
}

TEST_F(UringFileTest, TruncateGrowsWithZerosAndShrinks) {
  const auto file = open("data", {.create = true});
  ASSERT_TRUE(file->truncate(10 * MiB));
  EXPECT_EQ(file->size().value(), 10 * MiB);
  EXPECT_EQ(file->next_data(0).value(), 10 * MiB);
  EXPECT_EQ(file->next_hole(0).value(), 0U);
  ASSERT_TRUE(file->truncate(0));
  EXPECT_EQ(file->size().value(), 0U);
}

class UringDirectoryTest : public UringFileTest {};

TEST_F(UringDirectoryTest, OpensOnlyWhatIsThereUnlessAskedToMakeIt) {
  EXPECT_EQ(directory_->open("data", {}).error().kind(), ErrorKind::not_found);
  EXPECT_TRUE(directory_->open("data", {.create = true, .exclusive = true}).has_value());
  EXPECT_EQ(directory_->open("data", {.create = true, .exclusive = true}).error().kind(),
            ErrorKind::already_exists);
  EXPECT_TRUE(directory_->open("data", {.create = true}).has_value());
  struct stat status{};
  ASSERT_EQ(::stat((scratch_ / "data").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0077U, 0U) << "disks are secrets";
}

TEST_F(UringDirectoryTest, NamesAreSinglePathComponents) {
  for (const std::string& name :
       {std::string(""), std::string("."), std::string(".."), std::string("a/b"),
        std::string("/etc/passwd"), std::string("a\0b", 3)}) {
    EXPECT_EQ(directory_->open(name, {.create = true}).error().kind(), ErrorKind::invalid_argument)
        << name;
    EXPECT_EQ(directory_->remove(name).error().kind(), ErrorKind::invalid_argument) << name;
    EXPECT_EQ(directory_->rename("a", name).error().kind(), ErrorKind::invalid_argument) << name;
    EXPECT_EQ(directory_->exists(name).error().kind(), ErrorKind::invalid_argument) << name;
    EXPECT_EQ(directory_->open_directory(name, true).error().kind(), ErrorKind::invalid_argument)
        << name;
  }
}

TEST_F(UringDirectoryTest, FollowsALinkToAnAdoptedFile) {
  const ScratchDirectory elsewhere;
  const auto there = MUST(open_directory(*loop_, elsewhere.path(), false));
  MUST(there->open("image", {.create = true}));
  ASSERT_EQ(::symlink((elsewhere / "image").c_str(), (scratch_ / "data").c_str()), 0);
  const auto file = open("data", {.lock = true});
  ASSERT_TRUE(file->truncate(4096));
  EXPECT_EQ(std::filesystem::file_size(elsewhere / "image"), 4096U);
  EXPECT_EQ(file->name(), scratch_ / "data");
}

TEST_F(UringDirectoryTest, DoesNotMakeWhatADanglingLinkPointsTo) {
  const ScratchDirectory elsewhere;
  ASSERT_EQ(::symlink((elsewhere / "gone").c_str(), (scratch_ / "data").c_str()), 0);
  EXPECT_EQ(directory_->open("data", {.create = true}).error().kind(), ErrorKind::not_found);
  EXPECT_FALSE(std::filesystem::exists(elsewhere / "gone"));
  EXPECT_TRUE(directory_->exists("data").value()) << "the name is taken";
  EXPECT_TRUE(directory_->remove("data").has_value());
  EXPECT_FALSE(directory_->exists("data").value());
}

TEST_F(UringDirectoryTest, RefusesWhatIsNeitherFileNorDiskWithoutWaiting) {
  ASSERT_EQ(::mkfifo((scratch_ / "fifo").c_str(), 0600), 0);
  ASSERT_EQ(::symlink("/dev/zero", (scratch_ / "zero").c_str()), 0);
  EXPECT_EQ(directory_->open("fifo", {.read_only = true}).error().kind(),
            ErrorKind::invalid_argument);
  EXPECT_EQ(directory_->open("zero", {}).error().kind(), ErrorKind::invalid_argument);
  EXPECT_TRUE(directory_->open_directory("sub", true).has_value());
  EXPECT_EQ(directory_->open("sub", {.read_only = true}).error().kind(),
            ErrorKind::invalid_argument);
}

TEST_F(UringDirectoryTest, ListsNamesInOrder) {
  EXPECT_TRUE(directory_->list().value().empty());
  for (const char* name : {"b", "a", "c.d", ".hidden"}) open(name, {.create = true});
  MUST(directory_->open_directory("e", true));
  EXPECT_EQ(directory_->list().value(),
            (std::vector<std::string>{".hidden", "a", "b", "c.d", "e"}));
  EXPECT_EQ(directory_->list().value().size(), 5U)
      << "the second listing starts at the beginning again";
}

TEST_F(UringDirectoryTest, RenameReplaces) {
  ASSERT_TRUE(open("new", {.create = true})->truncate(100));
  open("old", {.create = true});
  ASSERT_TRUE(directory_->rename("new", "old"));
  EXPECT_FALSE(directory_->exists("new").value());
  EXPECT_EQ(open("old", {})->size().value(), 100U);
  EXPECT_EQ(directory_->rename("missing", "x").error().kind(), ErrorKind::not_found);
  EXPECT_TRUE(directory_->sync().has_value());
}

TEST_F(UringDirectoryTest, RemovesFilesAndEmptyDirectories) {
  open("file", {.create = true});
  const auto inner = MUST(directory_->open_directory("inner", true));
  MUST(inner->open("x", {.create = true}));
  EXPECT_TRUE(directory_->remove("file").has_value());
  EXPECT_EQ(directory_->remove("file").error().kind(), ErrorKind::not_found);
  EXPECT_FALSE(directory_->remove("inner").has_value()) << "it is not empty";
  EXPECT_TRUE(inner->remove("x").has_value());
  EXPECT_TRUE(directory_->remove("inner").has_value());
}

TEST_F(UringDirectoryTest, DirectoriesAreMadeOnDemand) {
  EXPECT_EQ(open_directory(*loop_, scratch_ / "a/b/c", false).error().kind(), ErrorKind::not_found);
  const auto deep = MUST(open_directory(*loop_, scratch_ / "a/b//c/", true));
  EXPECT_EQ(deep->path(), scratch_ / "a/b/c");
  EXPECT_TRUE(open_directory(*loop_, scratch_ / "a/b/c", true).has_value()) << "there already";
  EXPECT_EQ(open_directory(*loop_, "relative", true).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(directory_->open_directory("missing", false).error().kind(), ErrorKind::not_found);
  open("file", {.create = true});
  EXPECT_FALSE(directory_->open_directory("file", true).has_value());
  EXPECT_EQ(MUST(open_directory(*loop_, "/", false))->path(), "/");
}

}  // namespace
}  // namespace berth
