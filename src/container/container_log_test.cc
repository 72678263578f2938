#include "container/container_log.h"

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>

#include "machine/temporary_directory.h"

namespace berth::container {
namespace {

using machine::TemporaryDirectory;

constexpr std::uint64_t bytes_max = 4096;

class ContainerLogTest : public testing::Test {
 protected:
  ContainerLog open(bool is_new_run) {
    return MUST(ContainerLog::open(path_, cursor_, bytes_max, is_new_run));
  }
  static std::string all(LogReader& reader) {
    std::string text;
    while (true) {
      const auto lines = MUST(reader.read(1000));
      if (lines.empty()) return text;
      text += lines;
    }
  }
  /// The texts of entries, one a line.
  static std::string texts(std::string_view log) {
    std::string texts;
    while (!log.empty()) {
      const std::size_t end = log.find('\n');
      if (const auto entry = parse_log_line(log.substr(0, end)))
        texts += std::string(entry->text) + '\n';
      log.remove_prefix(end + 1);
    }
    return texts;
  }
  void append(ContainerLog& log, const std::string& text) {
    MUST(log.append(LogStream::output, text, std::chrono::system_clock::now()));
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_.path() + "/log";
  std::string cursor_ = directory_.path() + "/cursor";
};

TEST_F(ContainerLogTest, PositionsCountWhatWasWritten) {
  ContainerLog log = open(true);
  append(log, "one\n");
  MUST(log.append(LogStream::errors, "x", std::chrono::system_clock::now()));
  EXPECT_EQ(log.position(LogStream::output), 4U);
  EXPECT_EQ(log.position(LogStream::errors), 1U);
}

TEST_F(ContainerLogTest, TheNextKeeperGoesOnWhereThisOneDied) {
  {
    ContainerLog log = open(true);
    append(log, "counted\n");
  }
  {
    // Written, and the process died before it had counted it.
    std::ofstream file(path_, std::ios::app);
    file << "2026-11-27T17:20:57.693412345Z stdout F not counted\n2026-11-27T";
  }
  ContainerLog log = open(false);
  EXPECT_EQ(log.position(LogStream::output), 8U);
  append(log, "not counted\n");
  LogReader reader(path_, LogReader::From::start);
  EXPECT_EQ(texts(all(reader)), "counted\nnot counted\n");
}

TEST_F(ContainerLogTest, ANewRunKeepsTheLogAndBeginsToCount) {
  {
    ContainerLog log = open(true);
    append(log, "first run\n");
  }
  ContainerLog log = open(true);
  EXPECT_EQ(log.position(LogStream::output), 0U);
  append(log, "second run\n");
  LogReader reader(path_, LogReader::From::start);
  EXPECT_EQ(texts(all(reader)), "first run\nsecond run\n");
}

TEST_F(ContainerLogTest, IsBoundedAndAFollowerMissesNothing) {
  ContainerLog log = open(true);
  LogReader follower(path_, LogReader::From::start);
  std::string expected;
  std::string followed;
  for (int i = 0; i < 1000; ++i) {
    const std::string line = "line " + std::to_string(i) + '\n';
    append(log, line);
    expected += line;
    if (i % 7 == 0) followed += texts(all(follower));
  }
  followed += texts(all(follower));
  EXPECT_EQ(followed, expected);
  const auto size = std::filesystem::file_size(path_) + std::filesystem::file_size(path_ + ".old");
  EXPECT_LE(size, bytes_max);
  EXPECT_GT(size, bytes_max / 2);
  EXPECT_EQ(log.position(LogStream::output), expected.size());
  // One that comes later has the end of it.
  LogReader late(path_, LogReader::From::start);
  const std::string rest = texts(all(late));
  EXPECT_FALSE(rest.empty());
  EXPECT_TRUE(expected.ends_with(rest));
}

TEST_F(ContainerLogTest, ANewFileCountsFromItsBeginning) {
  {
    ContainerLog log = open(true);
    append(log, "before\n");
  }
  // Its keeper died between the two steps of beginning a new one.
  std::filesystem::rename(path_, path_ + ".old");
  ContainerLog log = open(false);
  EXPECT_EQ(log.position(LogStream::output), 7U);
  append(log, "after\n");
  LogReader reader(path_, LogReader::From::start);
  EXPECT_EQ(texts(all(reader)), "before\nafter\n");
}

TEST_F(ContainerLogTest, FromNowSeesWhatComes) {
  ContainerLog log = open(true);
  append(log, "before\n");
  LogReader reader(path_, LogReader::From::now);
  EXPECT_EQ(all(reader), "");
  append(log, "after\n");
  EXPECT_EQ(texts(all(reader)), "after\n");
}

TEST_F(ContainerLogTest, NoLogSoFarIsEmpty) {
  LogReader reader(path_, LogReader::From::start);
  EXPECT_EQ(all(reader), "");
  ContainerLog log = open(true);
  append(log, "now\n");
  EXPECT_EQ(texts(all(reader)), "now\n");
}

}  // namespace
}  // namespace berth::container
