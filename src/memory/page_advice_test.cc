#include "memory/page_advice.h"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/test_support.h"
#include "base/process.h"
#include "memory/memory_file.h"
#include "memory/page_scan.h"

namespace berth::memory {
namespace {

constexpr std::size_t page = page_size;

/// A file's pages in this process, which can go without swap.
class PageAdviceTest : public ::testing::Test {
 protected:
  static constexpr std::size_t pages = 4096;

  void SetUp() override {
    // Of pages that have just come, each CPU keeps some to itself, which only it can do without.
    ASSERT_EQ(::sched_getaffinity(0, sizeof allowed_, &allowed_), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(::sched_getcpu(), &one);
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
    const Fd file(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const std::vector<char> content(page, 'x');
    // Each for itself, for the page cache has it as written.
    for (std::size_t i = 0; i < pages; ++i)
      ASSERT_EQ(::write(file.get(), content.data(), page), static_cast<ssize_t>(page));
    ASSERT_EQ(::fdatasync(file.get()), 0);
    void* mapped =
        ::mmap(nullptr, pages * page, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file.get(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    memory_ = static_cast<std::byte*>(mapped);
  }
  void TearDown() override {
    ::munmap(memory_, pages * page);
    ::sched_setaffinity(0, sizeof allowed_, &allowed_);
  }

  iovec piece(std::size_t first, std::size_t count = 1) {
    return {.iov_base = memory_ + first * page, .iov_len = count * page};
  }
  void unmap(std::size_t first, std::size_t count = 1) {
    ASSERT_EQ(::munmap(memory_ + first * page, count * page), 0);
  }
  std::size_t present() {
    const auto begin = reinterpret_cast<std::uint64_t>(memory_);
    const Fd pagemap = MUST(open_pagemap(::getpid(), "test"));
    std::size_t total = 0;
    const auto scanned = scan_pages(
        pagemap, "test", {.begin = begin, .end = begin + pages * page, .all_of = page_is_present},
        [&](const PageRegion& region) { total += (region.end - region.start) / page; });
    EXPECT_TRUE(scanned);
    return total;
  }

  ScratchDirectory directory_{"/var/tmp"};  // of a disk also where /tmp is memory
  std::string path_ = directory_ / "file";
  std::byte* memory_ = nullptr;
  cpu_set_t allowed_{};
  Fd self_ = std::move(open_pidfd(::getpid()).value());
};

TEST_F(PageAdviceTest, WhatIsNotMappedAnyMoreIsPassedOverAndNothingElse) {
  ASSERT_EQ(present(), pages);
  const std::vector<iovec> pieces = {piece(0, 16), piece(100), piece(200, 16), piece(300),
                                     piece(301),   piece(400), piece(500, 16)};
  unmap(100);
  unmap(208, 4);  // in the midst of a piece
  unmap(300, 2);
  EXPECT_TRUE(advise_pages(self_, pieces, MADV_PAGEOUT));
  EXPECT_EQ(present(), pages - 3 - 3 * 16 - 1);
}

TEST_F(PageAdviceTest, TheFirstAndTheLastMayBeGone) {
  unmap(0);
  unmap(pages - 1);
  EXPECT_TRUE(advise_pages(self_, std::vector{piece(0), iovec{}, piece(8, 8), piece(pages - 1)},
                           MADV_PAGEOUT));
  EXPECT_EQ(present(), pages - 2 - 8);
}

TEST_F(PageAdviceTest, MoreThanTheKernelTakesAtOnce) {
  std::vector<iovec> pieces;
  for (std::size_t i = 0; i < pages; i += 2) pieces.push_back(piece(i));
  unmap(512);
  EXPECT_TRUE(advise_pages(self_, pieces, MADV_PAGEOUT));
  EXPECT_EQ(present(), pages / 2);
}

TEST_F(PageAdviceTest, AnotherErrorIsOne) {
  const Fd not_a_process(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(advise_pages(not_a_process, std::vector{piece(0)}, MADV_PAGEOUT));
  EXPECT_TRUE(advise_pages(not_a_process, {}, MADV_PAGEOUT));
}

}  // namespace
}  // namespace berth::memory
