#include "container/host_tsc.h"

#include <cmath>

#include <gtest/gtest.h>

namespace berth::container {
namespace {

TEST(HostTsc, TwoMeasurementsAgree) {
  const auto first = static_cast<double>(measure_host_tsc_khz());
  const auto second = static_cast<double>(measure_host_tsc_khz());
  if (first == 0) GTEST_SKIP() << "this CPU has none";
  EXPECT_GT(first, 100'000) << "no CPU counts that slowly";
  EXPECT_LT(std::abs(first - second) / first, 1e-3);
}

}  // namespace
}  // namespace berth::container
