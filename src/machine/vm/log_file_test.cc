#include "machine/vm/log_file.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/test_support.h"
#include "base/fd.h"

namespace berth::machine {
namespace {

using testing::EndsWith;
using testing::StartsWith;

class LogFileTest : public testing::Test {
 protected:
  std::string text() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  /// As QEMU does.
  void append(const std::string& text) {
    ASSERT_EQ(::write(writer_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void append_lines(std::uint64_t bytes) {
    std::string lines;
    for (unsigned number = 0; lines.size() < bytes; ++number)
      lines += fmt::format("line {}\n", number);
    append(lines);
  }

  ScratchDirectory directory_;
  std::string path_ = directory_ / "console.log";
  Fd writer_{::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)};
};

TEST_F(LogFileTest, ALogOfModestLengthStaysAsItIs) {
  append_lines(log_size_max - 100);
  const std::string before = text();
  MUST(trim_log(path_));
  EXPECT_EQ(text(), before);
}

TEST_F(LogFileTest, OfALongOneTheNewestLinesAreLeftAndItGoesOn) {
  append_lines(log_size_max + 1);
  const std::string before = text();
  MUST(trim_log(path_));
  append("and on\n");
  const std::string after = text();
  EXPECT_LE(after.size(), log_size_kept + 7);
  EXPECT_GE(after.size(), log_size_kept - 100);
  EXPECT_THAT(after, StartsWith("line "));
  EXPECT_THAT(before + "and on\n", EndsWith(after));
}

TEST_F(LogFileTest, ALineWithoutAnEndIsCutToo) {
  append(std::string(log_size_max + 1, 'x'));
  MUST(trim_log(path_));
  EXPECT_EQ(text(), std::string(log_size_kept, 'x'));
}

TEST_F(LogFileTest, WhatIsNoLogIsLeftAlone) {
  MUST(trim_log(directory_ / "missing"));
  append_lines(log_size_max + 1);
  const std::string before = text();
  std::filesystem::create_symlink(path_, directory_ / "link");
  MUST(trim_log(directory_ / "link"));
  std::filesystem::create_hard_link(path_, directory_ / "name");
  MUST(trim_log(directory_ / "name"));
  ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
  MUST(trim_log(directory_ / "pipe"));
  EXPECT_EQ(text(), before);
}

}  // namespace
}  // namespace berth::machine
