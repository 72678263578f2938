#include "base/fd.h"

#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace berth {
namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

int open_null() { return ::open("/dev/null", O_RDONLY | O_CLOEXEC); }

TEST(FdTest, ClosesOnceWhenItsOwnerGoes) {
  const int number = open_null();
  {
    Fd first(number);
    const Fd second(std::move(first));
    EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): what is left is the point
    EXPECT_EQ(second.get(), number);
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(FdTest, AssignmentClosesWhatWasThere) {
  const int first = open_null();
  const int second = open_null();
  Fd fd(first);
  fd = Fd(second);
  EXPECT_FALSE(is_open(first));
  EXPECT_TRUE(is_open(second));
}

TEST(FdTest, ReleaseGivesItAway) {
  const int number = open_null();
  {
    EXPECT_EQ(Fd(number).release(), number);
  }
  EXPECT_TRUE(is_open(number));
  ::close(number);
}

TEST(FdTest, NoneIsFalse) {
  EXPECT_FALSE(Fd());
  EXPECT_EQ(Fd().get(), -1);
}

}  // namespace
}  // namespace berth
