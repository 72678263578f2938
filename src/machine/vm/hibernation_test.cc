#include "machine/vm/hibernation.h"

#include <filesystem>

#include <gmock/gmock.h>

#include "async/test_support.h"

namespace berth::machine {
namespace {

SavedGuestState some() {
  return {.qemu = "7.2.22",
          .accelerator = "tcg",
          .memory = 256 << 20,
          .pages = "pages-3",
          .devices = "hibernated-devices",
          .device_checksum = ~std::uint64_t{0},
          .pause = {.level = PauseLevel::hibernated, .since = "t", .took_ms = 5, .memory = {}}};
}

TEST(SavedGuestState, ComesBackFromItsDocument) {
  EXPECT_EQ(encode(MUST(decode_saved_guest_state(encode(some())))), encode(some()));
}

TEST(SavedGuestState, NamesLeadNowhereElse) {
  for (const char* member : {"pages", "devices"}) {
    for (const char* value : {"", "..", "../x", "a/b"}) {
      Json wrong = encode(some());
      wrong[member] = value;
      EXPECT_EQ(decode_saved_guest_state(wrong).error().kind(), ErrorKind::invalid_argument)
          << member << " " << value;
    }
  }
}

TEST(Hibernation, IsThereFromItsFileOnAndUntilThatIsGone) {
  const ScratchDirectory directory;
  const std::string& place = directory.path();
  EXPECT_FALSE(is_hibernated(place));
  EXPECT_EQ(read_hibernation_file(place).error().kind(), ErrorKind::not_found);
  SavedGuestState saved = some();
  MUST(save_devices(place, "devices", saved));
  EXPECT_FALSE(is_hibernated(place));
  MUST(write_hibernation_file(place, encode(saved)));
  EXPECT_TRUE(is_hibernated(place));
  EXPECT_TRUE(saved_devices(place, saved));
  SavedGuestState others = some();
  MUST(save_devices(place, "others", others));
  EXPECT_EQ(saved_devices(place, saved).error().kind(), ErrorKind::corrupt);
  MUST(end_hibernation(place));
  EXPECT_FALSE(is_hibernated(place));
  remove_saved_devices(place);
  EXPECT_TRUE(std::filesystem::is_empty(place));
}

}  // namespace
}  // namespace berth::machine
