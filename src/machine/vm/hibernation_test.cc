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
          .pause = {.level = PauseLevel::hibernated, .since = "t", .took_ms = 5, .memory = {}},
          .programs = {{"/usr/bin/qemu", 20 << 20}, {"/lib/libc.so.6", 2 << 20}}};
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

TEST(SavedGuestState, ProgramsArePathsAndLengths) {
  EXPECT_EQ(MUST(decode_saved_guest_state(encode(some()))).programs, some().programs);
  for (const Json& value :
       {Json("x"), Json::array({"/usr/bin/qemu"}), Json({{"/x", "y"}}), Json({{"/x", -1}})}) {
    Json wrong = encode(some());
    wrong["programs"] = value;
    EXPECT_EQ(decode_saved_guest_state(wrong).error().kind(), ErrorKind::invalid_argument) << value;
  }
}

TEST(Hibernation, ReadingAheadFindsNothingWrong) {
  const ScratchDirectory directory;
  read_ahead_saved(directory.path());  // it is not hibernated
  SavedGuestState saved = some();
  saved.programs = {{"/proc/self/exe", ~std::uint64_t{0}}, {"/nonexistent", 1}, {"/", 1}};
  MUST(write_hibernation_file(directory.path(), encode(saved)));
  read_ahead_saved(directory.path());
  MUST(write_hibernation_file(directory.path(), Json("damaged")));
  read_ahead_saved(directory.path());
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
