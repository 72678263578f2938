// The simulation can fail: for each rule of the engine (DESIGN §5) a build that breaks it on
// purpose is caught within 1,000 seeds. A rule whose breach goes unnoticed is a rule that the
// simulation does not test.
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "disk/sabotage.h"
#include "volume_world.h"

namespace berth::sim {
namespace {

constexpr std::uint64_t seeds_max = 1000;
constexpr int exit_caught = 10;
constexpr int exit_unnoticed = 11;

struct Breach {
  disk::Sabotage sabotage;
  const char* name;
};

class SabotagedVolume : public testing::TestWithParam<Breach> {};

/// In a process of its own: a breach may also end in one of the engine's own CHECKs, which is
/// noticing too.
TEST_P(SabotagedVolume, is_caught) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    disk::active_sabotage = GetParam().sabotage;
    const auto result = simulate_volumes(1, seeds_max);
    if (!result.violation) ::_exit(exit_unnoticed);
    fmt::print("caught after {} runs: {:.160}\n", result.runs, *result.violation);
    std::fflush(stdout);
    ::_exit(exit_caught);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const bool noticed =
      WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == exit_caught);
  EXPECT_TRUE(noticed) << "a breach of the rule went unnoticed through " << seeds_max << " seeds";
}

INSTANTIATE_TEST_SUITE_P(
    AllRules, SabotagedVolume,
    testing::Values(Breach{disk::Sabotage::cap_live_epochs, "rule_1_cap_live_epochs"},
                    Breach{disk::Sabotage::reuse_recovered_epoch, "rule_2_reuse_recovered_epoch"},
                    Breach{disk::Sabotage::data_before_intent, "rule_3_data_before_intent"},
                    Breach{disk::Sabotage::presence_before_data, "rule_4_presence_before_data"},
                    Breach{disk::Sabotage::cut_without_drain, "rule_5_cut_without_drain"},
                    Breach{disk::Sabotage::ignore_expired_lease, "rule_6_ignore_expired_lease"},
                    Breach{disk::Sabotage::drop_layer_with_its_own,
                           "rule_7_drop_layer_with_its_own"},
                    Breach{disk::Sabotage::trust_first_look, "rule_8_trust_first_look"},
                    Breach{disk::Sabotage::ignore_nonce, "rule_9_ignore_nonce"},
                    Breach{disk::Sabotage::ignore_changed_data, "rule_9_ignore_changed_data"},
                    Breach{disk::Sabotage::settle_before_sync, "rule_9_settle_before_sync"},
                    Breach{disk::Sabotage::vouch_for_copies, "rule_9_vouch_for_copies"},
                    Breach{disk::Sabotage::zero_becomes_absent, "rule_10_zero_becomes_absent"},
                    Breach{disk::Sabotage::forget_revert, "rule_11_forget_revert"}),
    [](const testing::TestParamInfo<Breach>& breach) { return breach.param.name; });

}  // namespace
}  // namespace berth::sim
