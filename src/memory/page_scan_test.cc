#include "memory/page_scan.h"

#include <cstddef>

#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/test_support.h"
#include "memory/memory_file.h"

namespace berth::memory {
namespace {

TEST(PageScan, EachRegionIsSeenOnceAndInOrder) {
  constexpr std::size_t pages = 20'000;
  void* mapped = ::mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ASSERT_EQ(::madvise(mapped, pages * page_size, MADV_NOHUGEPAGE), 0);
  auto* memory = static_cast<char*>(mapped);
  const Fd pagemap = MUST(open_pagemap(::getpid(), "test"));
  const auto begin = reinterpret_cast<std::uint64_t>(memory);
  std::size_t written = 0;
  // More regions each time; in the last round, more than are asked for at once.
  for (const std::size_t until : {2U, 1'000U, 1'024U, 1'026U, 5'000U, 20'000U}) {
    for (; 2 * written < until; ++written) memory[2 * written * page_size] = 1;
    std::size_t count = 0;
    std::uint64_t last = 0;
    const auto scanned =
        scan_pages(pagemap, "test",
                   {.begin = begin, .end = begin + pages * page_size, .all_of = page_is_present},
                   [&](const PageRegion& region) {
                     ++count;
                     EXPECT_GT(region.start, last);
                     EXPECT_EQ(region.end - region.start, page_size);
                     last = region.end;
                   });
    EXPECT_TRUE(scanned);
    EXPECT_EQ(count, written);
  }
  ::munmap(mapped, pages * page_size);
}

}  // namespace
}  // namespace berth::memory
