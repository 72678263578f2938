#include "base/log.h"

#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace berth {
namespace {

/// Gives the log its level back.
class LogTest : public testing::Test {
 protected:
  void TearDown() override { set_log_level(LogLevel::info); }
};

TEST_F(LogTest, ALineHasTimeLevelAndMessage) {
  set_log_level(LogLevel::info);
  testing::internal::CaptureStderr();
  log_info("volume '{}': {} regions", "a", 7);
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_TRUE(line.ends_with("Z info volume 'a': 7 regions\n")) << line;
  EXPECT_EQ(line.find('T'), 10U) << line;
}

TEST_F(LogTest, WhatIsBelowTheLevelIsNotWritten) {
  set_log_level(LogLevel::warning);
  testing::internal::CaptureStderr();
  log_info("quiet");
  log_warning("loud");
  log_error("louder");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("quiet"), std::string::npos);
  EXPECT_NE(text.find("warning loud"), std::string::npos) << text;
  EXPECT_NE(text.find("error louder"), std::string::npos) << text;
}

TEST_F(LogTest, OffIsSilent) {
  set_log_level(LogLevel::off);
  EXPECT_FALSE(log_enabled(LogLevel::error));
  EXPECT_FALSE(log_enabled(LogLevel::off));
}

TEST_F(LogTest, BracesInAMessageAreNotFormatted) {
  testing::internal::CaptureStderr();
  log_write(LogLevel::error, "{} {0}");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("{} {0}"), std::string::npos);
}

TEST_F(LogTest, LevelsHaveNames) {
  EXPECT_EQ(log_level_from_string("debug"), LogLevel::debug);
  EXPECT_EQ(log_level_from_string("off"), LogLevel::off);
  EXPECT_EQ(log_level_from_string("loud"), LogLevel::info);
  EXPECT_EQ(log_level_from_string(""), LogLevel::info);
}

TEST_F(LogTest, ThreadsDoNotMixTheirLines) {
  testing::internal::CaptureStderr();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        for (int j = 0; j < 50; ++j) log_error("{}", std::string(100, 'x'));
      });
    }
  }
  const std::string text = testing::internal::GetCapturedStderr();
  std::size_t lines = 0;
  for (std::size_t at = 0;
       (at = text.find(" error " + std::string(100, 'x') + "\n", at)) != std::string::npos; ++at)
    ++lines;
  EXPECT_EQ(lines, 200U);
}

}  // namespace
}  // namespace berth
