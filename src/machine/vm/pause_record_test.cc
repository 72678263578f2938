#include "machine/vm/pause_record.h"

#include <gmock/gmock.h>

namespace berth::machine {
namespace {

TEST(PauseRecord, ComesBackFromItsDocument) {
  const PauseRecord record{
      .level = PauseLevel::parked,
      .since = "2026-11-27T17:20:57Z",
      .took_ms = 123,
      .memory = PageFiles::Report{.before = {.guest = 1, .swapped = 2, .process = 3},
                                  .after = {.guest = 4, .swapped = 5, .process = 6}},
      .page_file_bytes = 7};
  const PauseRecord back = MUST(decode_pause_record(encode(record)));
  EXPECT_EQ(encode(back), encode(record));
  ASSERT_TRUE(back.memory);
  EXPECT_EQ(back.memory->after.swapped, 5U);
}

TEST(PauseRecord, OneThatIsFrozenHasNoMemoryElsewhere) {
  const PauseRecord record{.level = PauseLevel::frozen, .since = "t", .memory = {}};
  const PauseRecord back = MUST(decode_pause_record(encode(record)));
  EXPECT_EQ(back.level, PauseLevel::frozen);
  EXPECT_FALSE(back.memory);
}

TEST(PauseRecord, WhatIsNoneIsRefused) {
  EXPECT_EQ(parse_pause_level("running").error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(parse_pause_level("").error().kind(), ErrorKind::invalid_argument);
  Json json = encode(
      PauseRecord{.level = PauseLevel::trimmed, .since = "t", .memory = PageFiles::Report{}});
  json["after"].erase("qemu");
  EXPECT_FALSE(decode_pause_record(json));
}

}  // namespace
}  // namespace berth::machine
