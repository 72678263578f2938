#include "control/cli/render_doctor.h"

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

namespace berth::control::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

json check(const char* name, const char* group, const char* need, const char* state) {
  const bool found = std::string_view(state) == "found";
  return {{"name", name},
          {"group", group},
          {"need", need},
          {"state", state},
          {"detail", "seen"},
          {"cost", found ? "" : "time"},
          {"remedy", found ? "" : "Buy it"}};
}

json report() {
  return {{"able", true},
          {"checks",
           {check("kvm", "CPU", "useful", "missing"), check("kernel", "kernel", "useful", "found"),
            check("io_uring", "kernel", "essential", "found")}}};
}

TEST(RenderDoctorTest, ALineForEachCheckInGroupsAndBelowWhatCanBeDone) {
  EXPECT_EQ(render_doctor(report(), Coloring::plain),
            "CPU\n"
            "  kvm       missing   seen\n"
            "kernel\n"
            "  kernel    found     seen\n"
            "  io_uring  found     seen\n"
            "\n"
            "kvm is missing (useful)\n"
            "  costs:  time\n"
            "  remedy: Buy it\n"
            "\n"
            "2 found, 1 missing; Berth can work here\n");
}

TEST(RenderDoctorTest, OnlyATerminalGetsColorsAndNobodyGetsControlCharacters) {
  json odd = report();
  odd["checks"][0]["detail"] = "a\033[2Jb\nc";
  EXPECT_THAT(render_doctor(odd, Coloring::plain), Not(HasSubstr("\033")));
  EXPECT_THAT(render_doctor(odd, Coloring::plain), HasSubstr("a [2Jb c\n"));
  EXPECT_THAT(render_doctor(odd, Coloring::terminal), HasSubstr("\033[31mmissing \033[0m"));
}

TEST(RenderDoctorTest, TheLastLineNamesWhatBerthCannotWorkWithout) {
  json unable = report();
  unable["able"] = false;
  unable["checks"][2]["state"] = "missing";
  EXPECT_THAT(render_doctor(unable, Coloring::plain),
              testing::EndsWith("1 found, 2 missing; Berth cannot work here without: io_uring\n"));
  EXPECT_EQ(missing_essentials_of(unable), "io_uring");
  EXPECT_EQ(missing_essentials_of(report()), "");
}

}  // namespace
}  // namespace berth::control::cli
