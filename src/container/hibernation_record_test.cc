#include "container/hibernation_record.h"

#include <gmock/gmock.h>

#include "async/test_support.h"

namespace berth::container {
namespace {

HibernationRecord some() {
  return {.image = "/state/images/a.erofs",
          .template_ = "/memory/1/ram",
          .saved = {.qemu = "7.2.22",
                    .accelerator = "tcg",
                    .memory = 256 << 20,
                    .pages = "pages-3",
                    .devices = "hibernated-devices",
                    .device_checksum = ~std::uint64_t{0},
                    .pause = {.level = machine::PauseLevel::hibernated,
                              .since = "t",
                              .took_ms = 5,
                              .memory = {}}},
          .started_at = "2026-11-28T01:00:00Z",
          .log_begins_at = "2026-11-28T01:00:00.000000000Z",
          .log_positions = {12, 34},
          .ports = {{.host_address = "127.0.0.1", .host_port = 8080, .guest_port = 80}}};
}

TEST(HibernationRecord, ComesBackFromItsDocument) {
  const HibernationRecord back = MUST(decode_hibernation_record(encode(some()).dump()));
  EXPECT_EQ(encode(back), encode(some()));
  EXPECT_EQ(back.log_positions[1], 34U);
  EXPECT_EQ(back.saved.pause.level, machine::PauseLevel::hibernated);
}

TEST(HibernationRecord, WhatIsNoneIsRefused) {
  Json other = encode(some());
  other["version"] = 2;
  EXPECT_EQ(decode_hibernation_record(other.dump()).error().kind(), ErrorKind::unsupported);
  for (const char* member : {"pages", "devices"}) {
    for (const char* value : {"", "..", "../x", "a/b"}) {
      Json wrong = encode(some());
      wrong[member] = value;
      EXPECT_EQ(decode_hibernation_record(wrong.dump()).error().kind(), ErrorKind::corrupt)
          << member << " " << value;
    }
  }
  EXPECT_EQ(decode_hibernation_record("{").error().kind(), ErrorKind::corrupt);
  EXPECT_EQ(decode_hibernation_record("[]").error().kind(), ErrorKind::corrupt);
}

TEST(HibernationRecord, IsReadAsItWasWritten) {
  const ScratchDirectory directory;
  EXPECT_EQ(read_hibernation(directory.path()).error().kind(), ErrorKind::not_found);
  MUST(write_hibernation(directory.path(), some(), "devices"));
  EXPECT_EQ(MUST(read_hibernation(directory.path())).ports, some().ports);
}

}  // namespace
}  // namespace berth::container
