#include "memory/memory_image.h"

#include <chrono>
#include <filesystem>
#include <random>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/test_support.h"

namespace berth::memory {
namespace {

std::uint64_t allocated(const std::string& path) {
  struct stat status{};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

void shorten(const std::string& path, std::uint64_t size) {
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
}

std::string noise(std::size_t length, unsigned seed) {
  std::minstd_rand random(seed);
  std::string bytes(length, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random() | 1U);
  return bytes;
}

class MemoryImageTest : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 16 * MiB;

  std::unique_ptr<MemoryImageWriter> create() {
    return MUST(MemoryImageWriter::create(ram_, image_));
  }
  static void copy_all(MemoryImageWriter& writer) {
    const std::atomic<bool> stop = false;
    MUST(writer.copy_all(stop, {}, {}));
  }
  void expect_alike() const { EXPECT_EQ(MUST(first_difference(image_, ram_)), size); }

  ScratchDirectory directory_{memory_place};
  std::string ram_ = make_file(directory_ / "ram", size);
  std::string image_ = directory_ / "image";
};

TEST_F(MemoryImageTest, HasEveryByteOfTheMemory) {
  write_at(ram_, 0, noise(3 * MiB, 1));
  write_at(ram_, 7 * MiB + 123, noise(100, 2));
  write_at(ram_, size - 1, "x");
  const auto writer = create();
  std::uint64_t reported = 0;
  const std::atomic<bool> stop = false;
  MUST(writer->copy_all(stop,
                        [&](std::uint64_t bytes) {
                          EXPECT_GE(bytes, reported);
                          reported = bytes;
                        },
                        {}));
  EXPECT_EQ(reported, size);
  MUST(writer->finish());
  expect_alike();
}

TEST_F(MemoryImageTest, HoldsOnlyPagesThatAreNotZero) {
  write_at(ram_, 0, std::string(2 * MiB, '\0'));  // allocated, and zero
  write_at(ram_, 4 * MiB, "one page");
  write_at(ram_, 4 * MiB + 3 * page, "and another");
  const auto writer = create();
  copy_all(*writer);
  EXPECT_EQ(writer->bytes_written(), 2 * page);
  MUST(writer->finish());
  EXPECT_EQ(allocated(image_), 2 * page);
  expect_alike();
}

TEST_F(MemoryImageTest, LookingAtAMemoryAllocatesNothingInIt) {
  write_at(ram_, 5 * page, "one page");
  const std::uint64_t before = allocated(ram_);
  const auto writer = create();
  copy_all(*writer);
  MUST(writer->copy({{.offset = 0, .length = size}}, 0));
  MUST(writer->finish());
  expect_alike();
  EXPECT_EQ(allocated(ram_), before);
}

TEST_F(MemoryImageTest, APageThatBecameZeroIsZero) {
  write_at(ram_, 0, noise(MiB, 1));
  const auto writer = create();
  copy_all(*writer);
  write_at(ram_, 8 * page, std::string(16 * page, '\0'));
  write_at(ram_, 8 * MiB, std::string(page, '\0'));
  MUST(writer->copy(
      {{.offset = 8 * page, .length = 12 * page}, {.offset = 8 * MiB, .length = page}}, 0));
  MUST(writer->prepare_staging(MiB));
  MUST(writer->stage({{.offset = 20 * page, .length = 4 * page}}));
  MUST(writer->finish());
  expect_alike();
  EXPECT_EQ(read_at(image_, 8 * MiB, 1), std::string(1, '\0'));
}

TEST_F(MemoryImageTest, CopiesTheRangesThatItIsToldAndNoOthers) {
  const auto writer = create();
  copy_all(*writer);
  write_at(ram_, 0, noise(size, 3));
  MUST(writer->copy({{.offset = page, .length = 2 * page}, {.offset = MiB, .length = MiB}}, 0));
  MUST(writer->finish());
  EXPECT_EQ(MUST(first_difference(image_, ram_)), 0U);
  EXPECT_EQ(read_at(image_, page, 2 * page), read_at(ram_, page, 2 * page));
  EXPECT_EQ(read_at(image_, MiB, MiB), read_at(ram_, MiB, MiB));
  EXPECT_EQ(allocated(image_), MiB + 2 * page);
}

TEST_F(MemoryImageTest, HasWhatWasStagedAsItWasThen) {
  write_at(ram_, 0, noise(2 * MiB, 1));
  const auto writer = create();
  copy_all(*writer);
  MUST(writer->prepare_staging(2 * MiB));
  write_at(ram_, 0, noise(MiB, 2));
  MUST(writer->stage({{.offset = 0, .length = MiB}}));
  write_at(ram_, 3 * page, noise(page, 3));
  MUST(writer->stage({{.offset = 3 * page, .length = page}}));  // over what was staged before
  const std::string expected = read_at(ram_, 0, size);
  write_at(ram_, 0, noise(size, 4));  // the machine goes on
  MUST(writer->finish());
  EXPECT_EQ(read_at(image_, 0, size), expected);
}

TEST_F(MemoryImageTest, StagesNoMoreThanWasPrepared) {
  const auto writer = create();
  const std::vector<PageRange> one_page = {{.offset = 0, .length = page}};
  const auto unprepared = writer->stage(one_page);
  ASSERT_FALSE(unprepared);
  EXPECT_EQ(unprepared.error().kind(), ErrorKind::precondition);

  MUST(writer->prepare_staging(4 * page));
  write_at(ram_, 0, "staged");
  MUST(writer->stage(one_page));
  EXPECT_EQ(writer->staging_left(), 3 * page);
  const auto too_much =
      writer->stage({{.offset = 0, .length = 3 * page}, {.offset = MiB, .length = 2 * page}});
  ASSERT_FALSE(too_much);
  EXPECT_EQ(too_much.error().kind(), ErrorKind::limit);
  MUST(writer->stage({{.offset = MiB, .length = 3 * page}}));
  MUST(writer->finish());
  expect_alike();
}

TEST_F(MemoryImageTest, WhatFindsNoRoomInTheStagingGoesToTheImage) {
  const auto writer = create();
  MUST(writer->prepare_staging(6 * page));
  write_at(ram_, 0, noise(8 * page, 1));
  MUST(writer->copy({{.offset = 0, .length = 8 * page}}, 2 * page));
  EXPECT_EQ(writer->staging_left(), 2 * page);
  EXPECT_EQ(writer->bytes_written(), 4 * page);
  EXPECT_EQ(writer->unstaged({{.offset = 0, .length = 8 * page}}), 4 * page);

  // What is staged is so again, and takes no room; what was in the image is written there again.
  write_at(ram_, 0, noise(8 * page, 2));
  MUST(writer->stage({{.offset = 3 * page, .length = 2 * page}}));
  EXPECT_EQ(writer->staging_left(), page);
  MUST(writer->copy({{.offset = 0, .length = 3 * page}}, 2 * page));
  EXPECT_EQ(writer->bytes_written(), 4 * page);

  // No room: what was staged, page 4 as its newest, goes first.
  MUST(writer->copy({{.offset = 5 * page, .length = 3 * page}}, 2 * page));
  EXPECT_EQ(writer->bytes_written(), (4 + 5) * page);
  EXPECT_EQ(writer->staging_left(), 3 * page);
  MUST(writer->finish());
  expect_alike();
}

TEST_F(MemoryImageTest, WhatIsToBeLeftOutIsNotCopiedAndReturned) {
  write_at(ram_, 0, noise(3 * MiB, 1));
  write_at(ram_, size - 16 * page, noise(16 * page, 2));
  // At both ends of what is asked about, and all of it; one that is too short for it.
  const PageRange too_short = {.offset = 30 * page, .length = 2 * page};
  const std::vector<PageRange> wanted = {{.offset = 0, .length = 16 * page},
                                         too_short,
                                         {.offset = 40 * page, .length = 20 * page},
                                         {.offset = MiB - 17 * page, .length = MiB},
                                         {.offset = size - 16 * page, .length = 16 * page}};
  const auto leave_out = [&](PageRange asked) -> Result<std::vector<PageRange>> {
    std::vector<PageRange> found;
    for (const auto& [offset, length] : wanted) {
      const std::uint64_t start = std::max(offset, asked.offset);
      const std::uint64_t end = std::min(offset + length, asked.offset + asked.length);
      if (start < end) found.push_back({.offset = start, .length = end - start});
    }
    return found;
  };
  const auto writer = create();
  const std::atomic<bool> stop = false;
  const auto left_out = merged(MUST(writer->copy_all(stop, {}, leave_out)));
  std::vector<PageRange> long_ones = wanted;
  std::erase(long_ones, too_short);
  EXPECT_EQ(left_out, long_ones);
  EXPECT_EQ(writer->bytes_written(), 3 * MiB + 16 * page - total_length(left_out));
  MUST(writer->copy(left_out, 0));
  MUST(writer->finish());
  expect_alike();
}

TEST_F(MemoryImageTest, WhatCannotBeWrittenIsAnErrorFromThenOn) {
  const std::string place = directory_ / "small";
  std::filesystem::create_directory(place);
  const SmallFileSystem small(place, "1m");
  if (!small.mounted()) GTEST_SKIP() << "no tmpfs can be mounted here";
  write_at(ram_, 0, noise(8 * MiB, 1));
  auto writer = MUST(MemoryImageWriter::create(ram_, place + "/image"));
  const std::atomic<bool> stop = false;
  const auto copied = writer->copy_all(stop, {}, {});
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::no_space) << copied.error().message();
  const auto finished = writer->finish();
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().kind(), ErrorKind::no_space);
  writer.reset();
  EXPECT_TRUE(std::filesystem::is_empty(place));
}

TEST_F(MemoryImageTest, APageIsStagedOnceAsItWasLast) {
  const auto writer = create();
  MUST(writer->prepare_staging(4 * page));
  MUST(writer->touch_staging(page + 1));
  // Scattered first, so that what is next to each other in the memory is not so where it is staged.
  for (const unsigned at : {7U, 5U, 6U}) {
    write_at(ram_, at * page, noise(page, at));
    MUST(writer->stage({{.offset = at * page, .length = page}}));
  }
  EXPECT_EQ(writer->staging_left(), page);
  const std::vector<PageRange> run = {{.offset = 4 * page, .length = 4 * page}};
  EXPECT_EQ(writer->unstaged(run), page);
  write_at(ram_, 4 * page, noise(4 * page, 9));
  MUST(writer->stage(run));
  EXPECT_EQ(writer->staging_left(), 0U);
  EXPECT_EQ(writer->unstaged(run), 0U);
  MUST(writer->stage(run));
  const auto refused = writer->stage({{.offset = 0, .length = page}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::limit);
  MUST(writer->finish());
  expect_alike();
  EXPECT_EQ(writer->bytes_written(), 4 * page);
}

TEST_F(MemoryImageTest, WhatIsStagedIsWrittenWhereverItLies) {
  // Longer than what is written at once, ends at the memory's end, and single pages beside it.
  const auto writer = create();
  MUST(writer->prepare_staging(size));
  write_at(ram_, size - 3 * MiB, noise(3 * MiB, 1));
  write_at(ram_, 3 * page, noise(page, 2));
  write_at(ram_, 0, noise(page, 3));
  MUST(writer->stage({{.offset = size - 3 * MiB, .length = 3 * MiB}}));
  MUST(writer->stage({{.offset = 0, .length = page}, {.offset = 3 * page, .length = page}}));
  MUST(writer->finish());
  expect_alike();
  EXPECT_EQ(allocated(image_), 3 * MiB + 2 * page);
}

TEST_F(MemoryImageTest, RangesThatAreNoPagesOfTheMemoryAreRefused) {
  const auto writer = create();
  MUST(writer->prepare_staging(MiB));
  for (const PageRange range :
       {PageRange{.offset = 1, .length = page}, PageRange{.offset = 0, .length = 5},
        PageRange{.offset = size, .length = page},
        PageRange{.offset = page, .length = UINT64_MAX - page + 1}}) {
    for (const auto& refused : {writer->copy({range}, 0), writer->stage({range})}) {
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().kind(), ErrorKind::invalid_argument);
    }
  }
}

TEST_F(MemoryImageTest, ChecksumsAreOfWhatIsInItAndNotOfItsHoles) {
  const std::uint64_t empty = MUST(memory_checksum(ram_));
  write_at(ram_, MiB + 5, "x");
  write_at(ram_, 9 * MiB, noise(600 * KiB, 7));
  const std::uint64_t full = MUST(memory_checksum(ram_));
  EXPECT_NE(full, empty);
  write_at(ram_, 3 * MiB, std::string(2 * MiB, '\0'));  // no hole any more
  EXPECT_EQ(MUST(memory_checksum(ram_)), full);
  const auto writer = create();
  copy_all(*writer);
  MUST(writer->finish());
  EXPECT_EQ(MUST(memory_checksum(image_)), full);
  write_at(ram_, MiB + 5, std::string(1, '\0'));
  write_at(ram_, 2 * MiB + 5, "x");  // the same bytes, elsewhere
  EXPECT_NE(MUST(memory_checksum(ram_)), full);
}

TEST_F(MemoryImageTest, IsNotMadeOverAnotherFile) {
  write_at(make_file(image_, page), 0, "kept");
  const auto refused = MemoryImageWriter::create(ram_, image_);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(read_at(image_, 0, 4), "kept");
}

TEST_F(MemoryImageTest, GoesWhenItIsNotFinished) {
  auto writer = create();
  copy_all(*writer);
  EXPECT_TRUE(std::filesystem::exists(image_));
  writer.reset();
  EXPECT_FALSE(std::filesystem::exists(image_));
}

TEST_F(MemoryImageTest, CopyingEndsSoonAfterItIsCancelled) {
  write_at(ram_, 0, noise(size, 1));
  const auto writer = create();
  std::atomic<bool> stop = false;
  std::uint64_t reported = 0;
  const auto copied = writer->copy_all(stop,
                                       [&](std::uint64_t bytes) {
                                         reported = bytes;
                                         stop = true;
                                       },
                                       {});
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().kind(), ErrorKind::cancelled);
  EXPECT_LE(reported, MiB);
}

TEST_F(MemoryImageTest, AMemoryThatIsMissingOrNoMemoryIsAnError) {
  const auto missing = MemoryImageWriter::create(directory_ / "nothing", image_);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind(), ErrorKind::not_found);
  for (const std::string& path : {directory_.path(), make_file(directory_ / "empty", 0),
                                  make_file(directory_ / "odd", 4097)}) {
    const auto refused = MemoryImageWriter::create(path, image_);
    ASSERT_FALSE(refused) << path;
    EXPECT_EQ(refused.error().kind(), ErrorKind::invalid_argument);
  }
  EXPECT_FALSE(std::filesystem::exists(image_));
}

TEST_F(MemoryImageTest, AMemoryThatIsCutShortUnderItsCopyIsAnErrorAndNoSignal) {
  write_at(ram_, 0, noise(size, 1));
  const auto writer = create();
  MUST(writer->prepare_staging(size));
  copy_all(*writer);
  shorten(ram_, size / 2);
  const std::vector<PageRange> gone = {{.offset = size - page, .length = page}};
  const auto copy_again = [&]() -> Result<void> {
    const std::atomic<bool> stop = false;
    TRY(writer->copy_all(stop, {}, {}));
    return {};
  };
  for (const auto& result :
       {writer->copy(gone, size), writer->stage(gone), copy_again(), writer->finish()}) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind(), ErrorKind::corrupt) << result.error().message();
  }
}

class LoadMemoryImageTest : public MemoryImageTest {
 protected:
  LoadMemoryImageTest() {
    write_at(ram_, 0, noise(3 * MiB, 1));
    write_at(ram_, size - 5, "x");
    const auto writer = create();
    copy_all(*writer);
    MUST(writer->finish());
  }
  std::string target_ = make_file(directory_ / "target", size);
};

TEST_F(LoadMemoryImageTest, TheMemoryIsAsItWas) {
  MUST(load_memory_image(image_, target_));
  EXPECT_EQ(MUST(first_difference(image_, target_)), size);
  EXPECT_EQ(allocated(target_), 3 * MiB + page);
}

TEST_F(LoadMemoryImageTest, AnImageOfAnotherSizeIsRefused) {
  shorten(image_, size - page);
  const auto loaded = load_memory_image(image_, target_);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(allocated(target_), 0U);
  shorten(image_, size - 1);
  EXPECT_FALSE(load_memory_image(image_, target_));
  const auto compared = first_difference(image_, target_);
  ASSERT_FALSE(compared);
  EXPECT_EQ(compared.error().kind(), ErrorKind::invalid_argument);
}

TEST_F(LoadMemoryImageTest, AMemoryWithSomethingInItIsRefused) {
  write_at(target_, 8 * MiB, "something");
  const auto loaded = load_memory_image(image_, target_);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().kind(), ErrorKind::precondition);
}

TEST_F(LoadMemoryImageTest, AMissingFileIsNotFound) {
  for (const auto& loaded : {load_memory_image(directory_ / "nothing", target_),
                             load_memory_image(image_, directory_ / "nothing")}) {
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().kind(), ErrorKind::not_found);
  }
}

/// What was written since, when there is something: on a busy host the writers may have to wait.
Result<std::vector<PageRange>> take_some(DirtyScan& scan) {
  std::vector<PageRange> written;
  for (int attempt = 0; attempt < 1000 && written.empty(); ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    written = TRY(scan.take());
  }
  return written;
}

// The whole of it, as a checkpoint does it: threads write at random, from user mode and by system
// calls, while rounds are copied; the last round is copied when they stand still.
TEST_F(MemoryImageTest, RoundsMakeACopyOfAMemoryThatIsWrittenAllTheTime) {
  const std::string ram = make_file(directory_ / "large", 64 * MiB);
  TrackedProcess process;
  process.tell("map", ram, 64 * MiB);
  process.tell("register");
  process.tell("rate", 100 * MiB);
  process.tell("run", 2, 1);
  const auto scan = MUST(DirtyScan::attach(process.pid(), ram));
  for (int repetition = 0; repetition < 3; ++repetition) {
    const std::string image = directory_ / fmt::format("image-{}", repetition);
    const auto writer = MUST(MemoryImageWriter::create(ram, image));
    MUST(writer->prepare_staging(64 * MiB));
    MUST(scan->take());
    copy_all(*writer);
    std::uint64_t in_rounds = 0;
    for (int round = 0; round < 5; ++round) {
      const auto written = MUST(take_some(*scan));
      in_rounds += total_length(written);
      MUST(writer->copy(written, (60 + round) * MiB));
    }
    EXPECT_GE(in_rounds, 5 * page);
    process.tell("halt");
    const auto last = MUST(scan->take());
    MUST(writer->stage(last));
    MUST(writer->finish());
    EXPECT_EQ(MUST(first_difference(image, ram)), 64 * MiB);
    process.tell("run", 2, repetition + 2);
  }
}

}  // namespace
}  // namespace berth::memory
