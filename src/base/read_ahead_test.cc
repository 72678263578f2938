#include "base/read_ahead.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "base/units.h"

namespace berth {
namespace {

TEST(ReadAhead, BringsAllOfALongPieceIntoThePageCache) {
  // The disk's: /tmp may be in memory, where nothing has to be read.
  const Fd file(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file);
  const std::vector<char> content(4 * MiB, 'x');
  ASSERT_EQ(::write(file.get(), content.data(), content.size()),
            static_cast<ssize_t>(content.size()));
  ASSERT_EQ(::fsync(file.get()), 0);
  ASSERT_EQ(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  ASSERT_TRUE(read_ahead(file, 0, content.size()));
  void* mapped = ::mmap(nullptr, content.size(), PROT_READ, MAP_SHARED, file.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::vector<unsigned char> pages(content.size() / 4096);
  const auto all_there = [&] {
    if (::mincore(mapped, content.size(), pages.data()) != 0) return false;
    return std::ranges::all_of(pages, [](unsigned char page) { return (page & 1) != 0; });
  };
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!all_there() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(all_there());
  ::munmap(mapped, content.size());
}

TEST(ReadAhead, IsNotForWhatIsNoFile) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const Fd reading(ends[0]);
  const Fd writing(ends[1]);
  EXPECT_FALSE(read_ahead(reading, 0, 4096));
}

}  // namespace
}  // namespace berth
