#include "container/program_run.h"

#include <gmock/gmock.h>

namespace berth::container {
namespace {

using testing::HasSubstr;

constexpr std::chrono::milliseconds short_while{300};

Result<void> run(std::vector<std::string> arguments, const ProgramLimits& limits = {}) {
  return run_to_end({.program = "bash",
                     .package = "bash",
                     .arguments = std::move(arguments),
                     .directory = "/",
                     .environment = {"BERTH_WORD=of its own"}},
                    limits);
}

TEST(ProgramRunTest, ItsLastWordsAreInTheError) {
  EXPECT_TRUE(run({"-c", "exit 0"}));
  const auto failed = run({"-c", "echo first; echo $BERTH_WORD in $PWD >&2; exit 3"});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind(), ErrorKind::io_error);
  EXPECT_EQ(failed.error().message(), "bash: of its own in /");
  EXPECT_THAT(run({"-c", "exit 3"}).error().message(), HasSubstr("ended with 3"));
  EXPECT_THAT(run({"-c", "kill -9 $$"}).error().message(), HasSubstr("signal 9"));
}

TEST(ProgramRunTest, AProgramThatIsMissingIsNamedWithItsPackage) {
  const auto failed = run_to_end(
      {.program = "no-such-program", .package = "its-package", .arguments = {}, .directory = "/"},
      {});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind(), ErrorKind::precondition);
  EXPECT_THAT(failed.error().message(), HasSubstr("apt-get install its-package"));
}

TEST(ProgramRunTest, WhoeverTakesTooLongIsEnded) {
  const auto whole = run({"-c", "sleep 60"}, {.whole = short_while});
  ASSERT_FALSE(whole);
  EXPECT_EQ(whole.error().kind(), ErrorKind::timed_out);
  const auto stalled =
      run({"-c", "sleep 60 & wait"}, {.progress = [] { return 7U; }, .stall = short_while});
  ASSERT_FALSE(stalled);
  EXPECT_THAT(stalled.error().message(), HasSubstr("nothing has come for 0.3 s"));
}

TEST(ProgramRunTest, WorkThatMovesIsNotStalled) {
  std::uint64_t count = 0;
  EXPECT_TRUE(
      run({"-c", "sleep 0.6"}, {.progress = [&count] { return ++count; }, .stall = short_while}));
}

TEST(ProgramRunTest, ACancelledOneIsEndedWithAllThatItHasStarted) {
  std::stop_source source;
  source.request_stop();
  const auto failed = run({"-c", "sleep 60 & wait"}, {.stop = source.get_token()});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind(), ErrorKind::cancelled);
}

TEST(LastWordsTest, WhatLoggersPutAroundThemIsLeftOut) {
  EXPECT_EQ(last_words("one\ntwo\n\n"), "two");
  EXPECT_EQ(last_words(R"(time="2026-01-01T00:00:00Z" level=fatal msg="reading \"a\": no")"),
            R"(reading "a": no)");
  EXPECT_EQ(last_words("   \xe2\xa8\xaf create rootfs: no\n"), "create rootfs: no");
  EXPECT_EQ(last_words("a\x1b[0m\tb"), "a?[0m?b");
  EXPECT_EQ(last_words(std::string(1000, 'x')).size(), 500U);
  EXPECT_EQ(last_words(""), "");
  EXPECT_EQ(last_words("panic: why [recovered]\n\ngoroutine 1 [running]:\nmain.go:7 +0x2aa\n"),
            "panic: why [recovered]");
  EXPECT_EQ(last_words("time=1 msg=\"a\\"), "a\\");
}

}  // namespace
}  // namespace berth::container
