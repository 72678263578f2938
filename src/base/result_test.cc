#include "base/result.h"

#include <memory>
#include <string>

#include <gtest/gtest.h>

namespace berth {
namespace {

Result<int> give(int value) { return value; }
Result<int> refuse(const std::string& why) { return failure(ErrorKind::precondition, why); }
Result<void> succeed() { return {}; }

struct CountDestructions {
  explicit CountDestructions(int& counter) : count(counter) {}
  CountDestructions(const CountDestructions&) = delete;
  CountDestructions& operator=(const CountDestructions&) = delete;
  ~CountDestructions() { ++count; }
  int& count;
};

TEST(ResultTest, TryGivesTheValue) {
  const auto sum = []() -> Result<int> { return TRY(give(2)) + TRY(give(3)); }();
  EXPECT_EQ(sum.value(), 5);
}

TEST(ResultTest, TryReturnsTheErrorToTheCaller) {
  bool went_on = false;
  const auto outcome = [&]() -> Result<std::string> {
    TRY(refuse("not now"));
    went_on = true;
    return "done";
  }();
  EXPECT_FALSE(went_on);
  EXPECT_EQ(outcome.error().kind(), ErrorKind::precondition);
  EXPECT_EQ(outcome.error().message(), "not now");
}

TEST(ResultTest, TryIsAStatementForResultsWithoutAValue) {
  const auto outcome = []() -> Result<void> {
    TRY(succeed());
    return {};
  }();
  EXPECT_TRUE(outcome.has_value());
}

TEST(ResultTest, TryMovesWhatCannotBeCopied) {
  const auto outcome = []() -> Result<int> {
    const std::unique_ptr<int> owned = TRY(Result<std::unique_ptr<int>>(std::make_unique<int>(7)));
    return *owned;
  }();
  EXPECT_EQ(outcome.value(), 7);
}

TEST(ResultTest, LeavingThroughTryDestroysWhatWasMade) {
  int destroyed = 0;
  const auto outcome = [&]() -> Result<int> {
    const CountDestructions first(destroyed);
    const auto second = std::make_unique<CountDestructions>(destroyed);
    return TRY(refuse("x"));
  }();
  EXPECT_FALSE(outcome.has_value());
  EXPECT_EQ(destroyed, 2);
}

TEST(ResultTest, ErrnoFailureCarriesTheErrno) {
  const Result<int> outcome = errno_failure(28, "cannot write");
  EXPECT_EQ(outcome.error().kind(), ErrorKind::no_space);
  EXPECT_EQ(outcome.error().errno_value(), 28);
}

TEST(ResultDeathTest, MustEndsTheProcessAndSaysWhy) {
  EXPECT_DEATH(static_cast<void>(MUST(refuse("the reason"))), "MUST failed: refuse.*the reason");
}

TEST(ResultDeathTest, CheckEndsTheProcessInReleaseBuildsToo) {
  EXPECT_DEATH(
      {
        const bool fine = false;
        CHECK(fine);
      },
      "CHECK failed: fine");
}

}  // namespace
}  // namespace berth
