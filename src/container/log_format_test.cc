#include "container/log_format.h"

#include <gmock/gmock.h>

namespace berth::container {
namespace {

constexpr const char* at = "2026-11-27T17:20:57.693412345Z";

TEST(LogFormat, TimesHaveNanosecondsAndSortAsTexts) {
  using std::chrono::nanoseconds;
  const std::chrono::system_clock::time_point time(
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          nanoseconds(1'795'800'057'000'000'042)));
  EXPECT_EQ(log_time(time), "2026-11-27T17:20:57.000000042Z");
  EXPECT_LT(log_time(time), log_time(time + nanoseconds(1)));
}

TEST(LogFormat, ALineIsAnEntry) {
  EXPECT_EQ(format_log_entries(at, LogStream::output, "one\n\ntwo\n"),
            std::string(at) + " stdout F one\n" + at + " stdout F \n" + at + " stdout F two\n");
  EXPECT_EQ(format_log_entries(at, LogStream::errors, "half"),
            std::string(at) + " stderr P half\n");
  EXPECT_EQ(format_log_entries(at, LogStream::errors, ""), "");
}

/// What a process wrote comes back from its log, byte by byte, however it was cut into pieces.
TEST(LogFormat, EveryByteComesBack) {
  std::string written;
  for (int i = 0; i < 70'000; ++i) written += static_cast<char>(i * 7 % 251);
  written += std::string(40'000, 'x') + "\n\n\nend";
  for (const std::size_t piece : {std::size_t{1}, std::size_t{17}, log_text_max, written.size()}) {
    std::string log;
    for (std::size_t i = 0; i < written.size(); i += piece)
      log += format_log_entries(at, LogStream::output, std::string_view(written).substr(i, piece));
    std::string read;
    for (std::string_view rest = log; !rest.empty();) {
      const std::size_t end = rest.find('\n');
      ASSERT_NE(end, std::string_view::npos);
      const auto entry = parse_log_line(rest.substr(0, end));
      ASSERT_TRUE(entry);
      EXPECT_LE(entry->text.size(), log_text_max);
      read += entry->text;
      if (!entry->partial) read += '\n';
      rest.remove_prefix(end + 1);
    }
    EXPECT_TRUE(read == written) << "in pieces of " << piece;
  }
}

TEST(LogFormat, WhatIsNoEntryIsPassedOver) {
  EXPECT_TRUE(parse_log_line(std::string(at) + " stdout F "));
  for (const std::string& line :
       {std::string(), std::string(at), std::string(at) + " stdout", std::string(at) + " stdout F",
        std::string(at) + " stdlog F x", std::string(at) + " stdout X x",
        std::string("2026 stdout F x"), std::string(" stdout F x")})
    EXPECT_FALSE(parse_log_line(line)) << line;
}

}  // namespace
}  // namespace berth::container
