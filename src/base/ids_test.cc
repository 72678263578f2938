#include "base/ids.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace berth {
namespace {

class FixedRandom final : public Random {
 public:
  void fill(std::span<std::byte> bytes) override { std::ranges::fill(bytes, std::byte{0xff}); }
};

TEST(IdsTest, TextAndBack) {
  const std::string text = "00112233-4455-6677-8899-aabbccddeeff";
  const Id128 id = Id128::parse(text).value();
  EXPECT_EQ(id.bytes[0], std::byte{0x00});
  EXPECT_EQ(id.bytes[15], std::byte{0xff});
  EXPECT_EQ(id.to_string(), text);
}

TEST(IdsTest, UpperCaseAndMissingDashesAreRead) {
  EXPECT_EQ(Id128::parse("00112233445566778899AABBCCDDEEFF").value().to_string(),
            "00112233-4455-6677-8899-aabbccddeeff");
}

TEST(IdsTest, WhatIsNotAnIdIsRefused) {
  for (const char* text :
       {"", "0011", "00112233-4455-6677-8899-aabbccddeef", "00112233-4455-6677-8899-aabbccddeeff0",
        "g0112233-4455-6677-8899-aabbccddeeff", "00112233-4455-6677-8899-aabbccddeeff\n"}) {
    const auto id = Id128::parse(text);
    ASSERT_FALSE(id.has_value()) << text;
    EXPECT_EQ(id.error().kind(), ErrorKind::invalid_argument);
  }
}

TEST(IdsTest, NilIsAllZeros) {
  EXPECT_TRUE(Id128{}.is_nil());
  EXPECT_FALSE(FixedRandom().id().is_nil());
}

TEST(IdsTest, RandomIdsAreVersion4Uuids) {
  EXPECT_EQ(FixedRandom().id().to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
}

TEST(IdsTest, TheSystemsIdsDiffer) {
  SystemRandom random;
  std::set<Id128> seen;
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(seen.insert(random.id()).second);
}

TEST(IdsTest, TheSystemFillsMoreThanOneCallGives) {
  // getrandom gives at most 33,554,431 bytes at a time, and 256 without interruption.
  std::vector<std::byte> bytes(100'000);
  SystemRandom().fill(bytes);
  EXPECT_LT(std::ranges::count(bytes, std::byte{0}), 1000);
}

}  // namespace
}  // namespace berth
