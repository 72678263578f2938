#include "memory/dirty_scan.h"

#include <chrono>
#include <thread>

#include <sys/mman.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/test_support.h"

namespace berth::memory {

void PrintTo(const PageRange& range, std::ostream* out) {
  *out << range.length / page << " pages at " << range.offset / page;
}

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using Ranges = std::vector<PageRange>;

PageRange pages(std::uint64_t first, std::uint64_t count = 1) {
  return {.offset = first * page, .length = count * page};
}

class DirtyScanTest : public testing::Test {
 protected:
  /// A process with the memory mapped and registered, and armed.
  void start(std::uint64_t size = 64 * MiB) {
    file_ = make_file(directory_ / "ram", size);
    process_.tell("map", file_, size);
    process_.tell("register");
  }
  void arm() {
    scan_ = MUST(DirtyScan::attach(process_.pid(), file_));
    EXPECT_THAT(MUST(scan_->take()), IsEmpty());
  }
  void store(std::uint64_t first, std::uint64_t count = 1, int value = 7) {
    process_.tell("store", first * page, count * page, value);
  }

  ScratchDirectory directory_{memory_place};
  TrackedProcess process_;
  std::string file_;
  std::unique_ptr<DirtyScan> scan_;
};

TEST_F(DirtyScanTest, FindsExactlyWhatWasWritten) {
  start();
  store(0, 100);
  arm();
  EXPECT_THAT(MUST(scan_->take()), IsEmpty());
  process_.tell("store", 5 * page + 17, 1, 9);
  store(7, 3);
  store(4095);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(5), pages(7, 3), pages(4095)));
}

TEST_F(DirtyScanTest, FindsPagesThatWereNeverThereBefore) {
  start();
  arm();
  store(3);
  store(8000, 2);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(3), pages(8000, 2)));
}

TEST_F(DirtyScanTest, TellsOfAWriteOnceAndOfTheNextOneAgain) {
  start();
  arm();
  store(10);
  store(10);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(10)));
  EXPECT_THAT(MUST(scan_->take()), IsEmpty());
  store(10);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(10)));
}

TEST_F(DirtyScanTest, LookingAtWhatWasWrittenLeavesItForTheNextTake) {
  start();
  store(0, 200);
  const auto unarmed = MUST(DirtyScan::attach(process_.pid(), file_));
  EXPECT_THAT(MUST(unarmed->written_of(pages(0, 200))), IsEmpty());
  arm();
  store(10, 3);
  store(40);
  for (int repetition = 0; repetition < 2; ++repetition) {
    EXPECT_THAT(MUST(scan_->written_of(pages(11, 100))), ElementsAre(pages(11, 2), pages(40)));
    EXPECT_THAT(MUST(scan_->written_of(pages(100, 50))), IsEmpty());
    EXPECT_THAT(MUST(scan_->written_of(pages(64 * MiB / page, 5))), IsEmpty());
  }
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(10, 3), pages(40)));
  EXPECT_THAT(MUST(scan_->written_of(pages(0, 100))), IsEmpty());
}

TEST_F(DirtyScanTest, ReadingIsNoWriting) {
  start();
  arm();
  EXPECT_EQ(process_.ask(fmt::format("load 0 {}", 100 * page)), "ok");
  EXPECT_THAT(MUST(scan_->take()), IsEmpty());
}

// What QEMU's own system calls write into the memory of a guest: data of disks and networks. The
// faults are the kernel's, and the userfaultfd is for those of user mode only.
TEST_F(DirtyScanTest, FindsWhatSystemCallsWriteIntoProtectedPages) {
  start();
  store(0, 64);
  arm();
  process_.tell("receive", 2 * page + 100, 3 * page, 1);
  process_.tell("read", 20 * page, page, 2);
  process_.tell("receive-vector", 30 * page, 4 * page, 3);
  process_.tell("receive", 9000 * page, 40 * page, 4);  // never there before
  EXPECT_THAT(MUST(scan_->take()),
              ElementsAre(pages(2, 4), pages(20), pages(30, 4), pages(9000, 40)));
  EXPECT_EQ(read_at(file_, 3 * page, 4), std::string(4, '\x01'));
  EXPECT_EQ(read_at(file_, 20 * page, 4), std::string(4, '\x02'));
  EXPECT_EQ(read_at(file_, 33 * page, 4), std::string(4, '\x03'));
}

// The data stays in the file; that it was written would be forgotten with its entry in the page
// table.
TEST_F(DirtyScanTest, WhatIsDiscardedFromThePageTablesCountsAsWritten) {
  start();
  arm();
  store(512, 2);
  store(1024, 512);  // a whole page table, which the kernel takes away
  process_.tell("discard", 512 * page, 1024 * page);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(512, 2), pages(1024, 512)));
  EXPECT_THAT(MUST(scan_->take()), IsEmpty());
  store(600);
  store(1030);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(600), pages(1030)));
}

// A limit of the kernel's, and the reason why the preload refuses to punch holes: a page that is
// protected stays so when the file loses it.
TEST_F(DirtyScanTest, AHolePunchedIntoProtectedPagesIsNotSeen) {
  start();
  store(0, 2048);
  arm();
  store(12);
  process_.tell("punch", 10 * page, 5 * page);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(12)));
}

TEST_F(DirtyScanTest, LooksBeyondFourGibibytes) {
  start(6 * GiB);
  arm();
  const std::uint64_t last = 6 * GiB / page - 1;
  store(last);
  store(2 * GiB / page);
  store(4 * GiB / page - 1, 2);
  EXPECT_THAT(MUST(scan_->take()),
              ElementsAre(pages(2 * GiB / page), pages(4 * GiB / page - 1, 2), pages(last)));
}

TEST_F(DirtyScanTest, ManyScatteredPagesAreAllFound) {
  start();
  arm();
  // More than one call of the kernel gives.
  Ranges expected;
  for (std::uint64_t i = 0; i < 6000; ++i) {
    store(2 * i);
    expected.push_back(pages(2 * i));
  }
  EXPECT_EQ(MUST(scan_->take()), expected);
}

TEST_F(DirtyScanTest, MemoryThatIsNotRegisteredIsNotTracked) {
  file_ = make_file(directory_ / "ram", MiB);
  process_.tell("map", file_, MiB);
  const auto scan = DirtyScan::attach(process_.pid(), file_);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::unsupported);
  EXPECT_THAT(scan.error().message(), HasSubstr("preload"));
}

TEST_F(DirtyScanTest, MemoryThatIsNotMappedIsNotFound) {
  file_ = make_file(directory_ / "ram", MiB);
  const auto scan = DirtyScan::attach(process_.pid(), file_);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::not_found);
}

TEST_F(DirtyScanTest, AFileOrAProcessThatIsNotThereIsNotFound) {
  const auto no_file = DirtyScan::attach(process_.pid(), directory_ / "nothing");
  ASSERT_FALSE(no_file);
  EXPECT_EQ(no_file.error().kind(), ErrorKind::not_found);
  start(MiB);
  const pid_t gone = process_.pid();
  process_.kill();
  const auto no_process = DirtyScan::attach(gone, file_);
  ASSERT_FALSE(no_process);
  EXPECT_EQ(no_process.error().kind(), ErrorKind::not_found);
}

TEST_F(DirtyScanTest, MemoryMappedTwiceIsRefused) {
  start();
  process_.tell("again");
  const auto scan = DirtyScan::attach(process_.pid(), file_);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::precondition);
}

TEST_F(DirtyScanTest, MemoryMappedInPartIsRefused) {
  start();
  process_.tell("unmap", 32 * MiB, MiB);
  const auto scan = DirtyScan::attach(process_.pid(), file_);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::precondition);
}

struct Loss {
  const char* name;
  std::string command;
};
class LostTrackingTest : public DirtyScanTest, public testing::WithParamInterface<Loss> {};

TEST_P(LostTrackingTest, IsAnErrorAndNotSilence) {
  start();
  arm();
  store(1);
  ASSERT_EQ(process_.ask(GetParam().command), "ok");
  for (int i = 0; i < 2; ++i) {
    const auto taken = scan_->take();
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().kind(), ErrorKind::precondition) << taken.error().message();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, LostTrackingTest,
    testing::Values(Loss{"RemappedWhole", fmt::format("remap 0 {}", 64 * MiB)},
                    Loss{"RemappedInPart", fmt::format("remap {} {}", 8 * MiB, page)},
                    Loss{"UnmappedInPart", fmt::format("unmap {} {}", 8 * MiB, page)},
                    Loss{"UnmappedWhole", fmt::format("unmap 0 {}", 64 * MiB)},
                    Loss{"MappedASecondTime", "again"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(DirtyScanTest, MemoryMappedAnewAndRegisteredAgainCountsAsWritten) {
  start();
  arm();
  store(0, 64);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(0, 64)));
  process_.tell("remap", 0, 64 * MiB);
  process_.tell("register");
  store(5);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(0, 64 * MiB / page)));
  store(5);
  EXPECT_THAT(MUST(scan_->take()), ElementsAre(pages(5)));
}

TEST_F(DirtyScanTest, AProcessThatHasEndedIsAnError) {
  start();
  arm();
  store(1);
  process_.kill();
  const auto taken = scan_->take();
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().kind(), ErrorKind::disconnected);
}

TEST(TotalLength, IsTheSum) {
  EXPECT_EQ(total_length({}), 0U);
  EXPECT_EQ(total_length({{.offset = 4096, .length = 8192}, {.offset = 0, .length = 4096}}),
            12288U);
}

}  // namespace
}  // namespace berth::memory
