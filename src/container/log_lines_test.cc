#include "container/log_lines.h"

#include <fstream>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "machine/temporary_directory.h"

namespace berth::container {
namespace {

using machine::TemporaryDirectory;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr const char* at = "2026-11-27T17:20:57.693412345Z";

class LogLinesTest : public testing::Test {
 protected:
  void write(const std::string& text) const { std::ofstream(path_, std::ios::app) << text; }
  void write(LogStream stream, const std::string& text) const {
    write(format_log_entries(at, stream, text));
  }
  /// All that there is: the beginning of a line has a mark before it.
  static std::vector<std::string> all(LogLines& lines) {
    std::vector<std::string> found;
    const auto take = [&](const LogEntry& entry, bool begins) {
      const char* mark = entry.stream == LogStream::errors ? "!" : "|";
      found.push_back(fmt::format("{}{}", begins ? mark : "", entry.text));
    };
    MUST(lines.read_all(take));
    return found;
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_.path() + "/log";
};

TEST_F(LogLinesTest, ThereIsNothingWhereThereIsNoLog) {
  LogLines lines(path_);
  MUST(lines.keep_last(3));
  EXPECT_THAT(all(lines), IsEmpty());
}

TEST_F(LogLinesTest, AreReadAsTheyCome) {
  LogLines lines(path_);
  write(LogStream::output, "one\ntwo\n");
  EXPECT_THAT(all(lines), ElementsAre("|one", "|two"));
  EXPECT_THAT(all(lines), IsEmpty());
  write(LogStream::errors, "three\n");
  EXPECT_THAT(all(lines), ElementsAre("!three"));
}

TEST_F(LogLinesTest, ALineMayHaveSeveralEntriesAmongThoseOfTheOtherStream) {
  LogLines lines(path_);
  write(LogStream::output, "a");
  write(LogStream::errors, "x\n");
  write(LogStream::output, "b\n");
  EXPECT_THAT(all(lines), ElementsAre("|a", "!x", "b"));
}

TEST_F(LogLinesTest, TheLastOnesMayBeWantedAlone) {
  write(LogStream::output, "one\ntwo\n");
  write(LogStream::errors, "three\n");
  write(LogStream::output, "fo");
  for (const auto& [count, wanted] : std::vector<std::pair<std::size_t, std::vector<std::string>>>{
           {0, {}}, {1, {"|fo"}}, {2, {"!three", "|fo"}}, {9, {"|one", "|two", "!three", "|fo"}}}) {
    LogLines lines(path_);
    MUST(lines.keep_last(count));
    EXPECT_EQ(all(lines), wanted) << count;
  }
}

TEST_F(LogLinesTest, WhatComesLaterIsNotPassedOver) {
  write(LogStream::output, "one\ntw");
  LogLines lines(path_);
  MUST(lines.keep_last(0));
  write(LogStream::output, "o\nthree\n");
  EXPECT_THAT(all(lines), ElementsAre("|three"))
      << "the rest of a line that was passed over is, too";
}

TEST_F(LogLinesTest, WhatIsNoEntryIsPassedOver) {
  write("no entry\n");
  write(LogStream::output, "one\n");
  LogLines lines(path_);
  EXPECT_THAT(all(lines), ElementsAre("|one"));
}

}  // namespace
}  // namespace berth::container
