// The volume engine through thousands of simulated lives: volume_world.h lists the invariants.
// BERTH_SIM_RUNS sets how many, BERTH_SIM_SEED replays one.
#include <cstdlib>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "volume_world.h"

namespace berth::sim {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before any thread
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST(VolumeSimulation, keeps_every_promise_through_deaths_and_power_losses) {
  if (const std::uint64_t seed = from_environment("BERTH_SIM_SEED", 0); seed != 0) {
    const auto result = simulate_volumes(seed, 1, true);
    ASSERT_FALSE(result.violation) << *result.violation;
    return;
  }
  const std::uint64_t runs = from_environment("BERTH_SIM_RUNS", 10'000);
  const auto result = simulate_volumes(1, runs);
  for (const auto& [name, count] : result.probes.counts()) fmt::print("{:>10} {}\n", count, name);
  ASSERT_FALSE(result.violation) << *result.violation
                                 << "\nreplay it with BERTH_SIM_SEED; runs before it: "
                                 << result.runs;
  if (runs < 5'000) return;
  // The rare paths have run; a simulation that never gets there proves nothing about them.
  for (const char* rare :
       {"process_died_with_operations_in_flight", "power_lost_with_operations_in_flight",
        "dead_operation_landed", "lock_waited_for_dead_operations", "power_loss_tore_write",
        "power_loss_reordered_writes", "power_loss_lost_create", "failed_sync_stranded_page",
        "failed_sync_reverted_page", "disk_full", "inexact_answer", "revert_rolled_forward",
        "volatile_checkpoint_lost", "resized", "moved", "copied", "arrival_cut_short",
        "changed_data_refused", "point_of_original_refused"}) {
    EXPECT_GT(result.probes.count(rare), 0U) << rare;
  }
}

}  // namespace
}  // namespace berth::sim
