#include "base/fault_point.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace berth {
namespace {

class FaultPoint : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  void arm(const char* name) const { std::ofstream(path_) << name; }
  bool is_armed() const { return std::filesystem::exists(path_); }

  /// A process that comes to the point "house.door", and to others before it.
  [[noreturn]] void walk() const {
    ::setenv("BERTH_FAULT_POINTS", path_.c_str(), 1);
    fault_point("house");
    fault_point("house.doo");
    fault_point("house.door");
    std::_Exit(7);
  }

  const std::string path_ = fmt::format("{}/fault-{}", testing::TempDir(), ::getpid());
};

TEST_F(FaultPoint, EndsTheProcessThatComesToItAndOnlyTheFirst) {
  arm("house.door");
  EXPECT_EXIT(walk(), testing::KilledBySignal(SIGKILL), "fault point house.door");
  EXPECT_FALSE(is_armed());
  EXPECT_EXIT(walk(), testing::ExitedWithCode(7), "");
}

TEST_F(FaultPoint, StaysArmedWhereNobodyComesToIt) {
  arm("house.door2");
  EXPECT_EXIT(walk(), testing::ExitedWithCode(7), "");
  EXPECT_TRUE(is_armed());
  arm("");
  EXPECT_EXIT(walk(), testing::ExitedWithCode(7), "");
}

TEST_F(FaultPoint, IsNothingWithoutTheVariable) {
  EXPECT_EXIT((fault_point("house.door"), std::_Exit(7)), testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace berth
