#include "control/configuration.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace berth::control {
namespace {

using namespace std::chrono_literals;
using machine::PauseLevel;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ParkingConfiguration parking(std::string_view text) {
  const auto parsed = parse_configuration(text, "berth.toml");
  EXPECT_TRUE(parsed) << parsed.error().message();
  return parsed ? parsed->parking : ParkingConfiguration{};
}

std::string mistake(std::string_view text) {
  const auto parsed = parse_configuration(text, "berth.toml");
  EXPECT_FALSE(parsed) << text;
  if (parsed) return {};
  EXPECT_EQ(parsed.error().kind(), ErrorKind::invalid_argument);
  return parsed.error().message();
}

TEST(Configuration, PausesNothingByItselfUnlessItSaysSo) {
  for (const char* text : {"", "# nothing\n", "[parking]\n"}) {
    EXPECT_THAT(parking(text).steps, IsEmpty());
    EXPECT_FALSE(parking(text).pressure);
  }
}

TEST(Configuration, OneTimeIsThatOfParking) {
  EXPECT_THAT(parking("[parking]\nafter_idle = '10m'\n").steps,
              ElementsAre(ParkingStep{PauseLevel::parked, 10min}));
}

TEST(Configuration, EachLevelMayHaveATime) {
  EXPECT_THAT(
      parking("[parking.after_idle]\nparked = '1h'\nfrozen = '30s'\n").steps,
      ElementsAre(ParkingStep{PauseLevel::frozen, 30s}, ParkingStep{PauseLevel::parked, 1h}));
}

TEST(Configuration, PressureHasAThresholdAndAPace) {
  const auto set = parking(
      "[parking]\npressure = 5\npressure_interval = '2s'\npressure_file = "
      "'/sys/memory.pressure'\n");
  EXPECT_EQ(set.pressure, 5.0);
  EXPECT_EQ(set.pressure_interval, 2s);
  EXPECT_EQ(set.pressure_file, "/sys/memory.pressure");
}

TEST(Configuration, AMistakeHasItsLine) {
  EXPECT_EQ(mistake("[parking]\nafter_idel = '5m'\n"),
            "berth.toml:2: parking.after_idel: not known here; there are after_idle, pressure, "
            "pressure_interval, pressure_file");
  EXPECT_THAT(mistake("\n[packing]\n"), HasSubstr("berth.toml:2: packing: not known here"));
  EXPECT_EQ(mistake("parking = 3\n"), "berth.toml:1: parking: expected a table");
  EXPECT_EQ(mistake("[parking.after_idle]\nfrozen = '5m'\nparked = '4m'\n"),
            "berth.toml:3: parking.after_idle.parked: expected a longer time than that of frozen, "
            "which is a lighter level");
  EXPECT_THAT(mistake("[parking]\nafter_idle = 5\n"),
              HasSubstr("berth.toml:2: parking.after_idle: expected a duration"));
  EXPECT_THAT(mistake("[parking]\nafter_idle = '0s'\n"), HasSubstr("above zero"));
  EXPECT_THAT(mistake("[parking.after_idle]\ndeep = '5m'\n"),
              HasSubstr("parking.after_idle.deep: not known here; there are frozen, trimmed, "
                        "parked, hibernated"));
  EXPECT_THAT(mistake("[parking]\npressure = 0\n"), HasSubstr("parking.pressure: expected"));
  EXPECT_THAT(mistake("[parking]\npressure = '5'\n"), HasSubstr("parking.pressure: expected"));
  EXPECT_THAT(mistake("[parking]\npressure_file = 'here'\n"), HasSubstr("an absolute path"));
  EXPECT_THAT(mistake("[parking\n"), HasSubstr("berth.toml:1:"));
}

TEST(Configuration, ThePageHasExamplesThatAreTakenAndEveryKey) {
  std::ifstream file(std::filesystem::path(BERTH_TEST_DATA_DIR).parent_path().parent_path() /
                     "docs/berth-toml.md");
  const std::string page(std::istreambuf_iterator<char>(file), {});
  constexpr std::string_view fence = "```toml\n";
  std::size_t examples = 0;
  for (std::size_t at = page.find(fence); at != std::string::npos; at = page.find(fence, at)) {
    at += fence.size();
    const std::string example = page.substr(at, page.find("```", at) - at);
    EXPECT_FALSE(parking(example).steps.empty()) << example;
    ++examples;
  }
  EXPECT_EQ(examples, 2);
  for (const char* key : {"after_idle", "pressure", "pressure_interval", "pressure_file"})
    EXPECT_THAT(page, HasSubstr(fmt::format("\n| `{}` |", key)));
}

}  // namespace
}  // namespace berth::control
