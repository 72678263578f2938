#include "base/units.h"

#include <chrono>
#include <string>

#include <gtest/gtest.h>

namespace berth {
namespace {

TEST(UnitsTest, SizesTakeBinarySuffixes) {
  EXPECT_EQ(parse_size("0").value(), 0U);
  EXPECT_EQ(parse_size("4096").value(), 4096U);
  EXPECT_EQ(parse_size("64K").value(), 64 * KiB);
  EXPECT_EQ(parse_size("64k").value(), 64 * KiB);
  EXPECT_EQ(parse_size("10G").value(), 10 * GiB);
  EXPECT_EQ(parse_size("3MiB").value(), 3 * MiB);
  EXPECT_EQ(parse_size("2T").value(), 2 * TiB);
  EXPECT_EQ(parse_size("1.5T").value(), TiB + TiB / 2);
  EXPECT_EQ(parse_size("18446744073709551615").value(), UINT64_MAX);
}

TEST(UnitsTest, WhatIsNotASizeIsRefused) {
  for (const std::string text : {"",          "K",          "iB",   "-1",   "-1K",
                                 "1X",        "1 G",        " 1",   "1e3",  "0x10",
                                 "1.5",       "1.0000001K", "nanG", "infG", "18446744073709551616",
                                 "16777216T", "1KK",        "1iBK", "1.K.", "99999999999999T"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size.has_value()) << text << " gave " << *size;
    EXPECT_EQ(size.error().kind(), ErrorKind::invalid_argument);
    EXPECT_NE(size.error().message().find("'" + text + "'"), std::string::npos)
        << size.error().message();
  }
}

TEST(UnitsTest, SizesAreShownInTheLargestUnitThatFits) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(KiB), "1.0 KiB");
  EXPECT_EQ(format_size(10 * GiB), "10.0 GiB");
  EXPECT_EQ(format_size(TiB + TiB / 2), "1.5 TiB");
}

TEST(UnitsTest, DurationsTakeTheirUnit) {
  using namespace std::chrono_literals;
  EXPECT_EQ(*parse_duration("500ms"), 500ms);
  EXPECT_EQ(*parse_duration("90s"), 90s);
  EXPECT_EQ(*parse_duration("5m"), 5min);
  EXPECT_EQ(*parse_duration("1.5h"), 90min);
  EXPECT_EQ(*parse_duration("1d"), 24h);
  EXPECT_EQ(*parse_duration("0s"), 0s);
}

TEST(UnitsTest, WhatIsNotADurationIsRefused) {
  for (const char* text : {"", "5", "s", "-1s", "5 m", "1e3s", "nans", "infs", "10w", "5mm",
                           "4000d", "999999999999999999999999h"}) {
    const auto parsed = parse_duration(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().kind(), ErrorKind::invalid_argument) << text;
  }
}

TEST(UnitsTest, TimesAreRfc3339InUtc) {
  EXPECT_EQ(format_time(std::chrono::system_clock::time_point{}), "1970-01-01T00:00:00Z");
  EXPECT_EQ(format_time(std::chrono::system_clock::from_time_t(1'795'415'880)),
            "2026-11-23T06:38:00Z");
}

TEST(UnitsTest, Rounding) {
  EXPECT_EQ(round_up(0, 4096), 0U);
  EXPECT_EQ(round_up(1, 4096), 4096U);
  EXPECT_EQ(round_up(4096, 4096), 4096U);
  EXPECT_EQ(round_down(4095, 4096), 0U);
  EXPECT_EQ(round_down(8191, 4096), 4096U);
  EXPECT_EQ(divide_up(0, 7), 0U);
  EXPECT_EQ(divide_up(7, 7), 1U);
  EXPECT_EQ(divide_up(8, 7), 2U);
}

}  // namespace
}  // namespace berth
