// The simulator against a small durable thing whose right form is known: a register of one number
// in two checksummed slots. The right one survives every death; each wrong one is caught within the
// seeds.
//
// Invariant: after any death the register holds a number between the last one acknowledged and the
// last one asked for; after the death of the process alone too.
#include <optional>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "base/checksum.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"

namespace berth {
namespace {

enum class Mistake : std::uint8_t {
  none,
  no_sync,
  one_slot,
  no_checksum,
  no_lock,
  no_directory_sync,
  trusts_what_it_sees,  // what a dead process wrote and nobody synced
};

constexpr std::size_t slot_size = 8192;  // many sectors, so that it tears

class Register {
 public:
  Register(Directory& directory, Mistake mistake) : directory_(directory), mistake_(mistake) {}

  Task<Result<std::uint64_t>> open() {
    file_ =
        CO_TRY(directory_.open("register", {.create = true, .lock = mistake_ != Mistake::no_lock}));
    if (mistake_ != Mistake::no_directory_sync) CO_TRY(directory_.sync());
    // What is there may be there only until power fails.
    if (mistake_ != Mistake::trusts_what_it_sees) CO_TRY(co_await file_->sync());
    std::uint64_t found = 0;
    for (std::uint64_t slot = 0; slot < 2; ++slot) {
      std::string bytes(slot_size, '\0');
      CO_TRY(co_await file_->read(slot * slot_size, writable(bytes)));
      const auto* from = reinterpret_cast<const std::byte*>(bytes.data());
      const auto number = load_le<std::uint64_t>(from);
      const bool good =
          load_le<std::uint64_t>(from + slot_size - 8) == checksum64({from, slot_size - 8});
      if ((!good && mistake_ != Mistake::no_checksum) || number <= found) continue;
      if (bytes.find_first_not_of(letter(number), 8) != slot_size - 8) {
        co_return failure(ErrorKind::corrupt, fmt::format("slot {} is torn", slot));
      }
      found = number;
      slot_ = slot;
    }
    co_return found;
  }

  /// Durable when it returns.
  Task<Result<void>> set(std::uint64_t number) {
    std::string bytes(slot_size, letter(number));
    auto* to = reinterpret_cast<std::byte*>(bytes.data());
    store_le(to, number);
    store_le(to + slot_size - 8, checksum64({to, slot_size - 8}));
    slot_ = mistake_ == Mistake::one_slot ? 0 : 1 - slot_;
    CO_TRY(co_await file_->write(slot_ * slot_size, as_bytes(bytes)));
    if (mistake_ != Mistake::no_sync) CO_TRY(co_await file_->sync());
    co_return Result<void>{};
  }

 private:
  static MutableBytes writable(std::string& bytes) {
    return {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()};
  }
  static char letter(std::uint64_t number) { return static_cast<char>('a' + number % 26); }

  Directory& directory_;
  Mistake mistake_;
  std::unique_ptr<File> file_;
  std::uint64_t slot_ = 0;  // of the newest number
};

struct Progress {
  std::uint64_t asked = 0;
  std::uint64_t acknowledged = 0;
  std::optional<std::string> violation;
};

Task<> live(SimLoop& loop, Register& durable, Progress& progress) {
  const auto found = co_await durable.open();
  if (!found) {
    progress.violation = found.error().message();
    co_return;
  }
  if (*found < progress.acknowledged || *found > progress.asked) {
    progress.violation = fmt::format("found {}, but {} was acknowledged and {} asked for", *found,
                                     progress.acknowledged, progress.asked);
    co_return;
  }
  progress.acknowledged = progress.asked = *found;
  for (;;) {
    ++progress.asked;
    const auto set = co_await durable.set(progress.asked);
    if (set) progress.acknowledged = progress.asked;
    co_await loop.yield();
  }
}

Progress run(std::uint64_t seed, Mistake mistake, SimProbes& probes) {
  SimHost host(seed);
  SimLoop loop(host, seed);
  SimRandom random(seed);
  Progress progress;
  for (int death = 0; death < 8 && !progress.violation; ++death) {
    const auto directory = MUST(host.open_directory(loop, "vol"));
    Register durable(*directory, mistake);
    Gate gate(loop);
    gate.spawn(live(loop, durable, progress));
    for (std::uint64_t steps = random.below(60); steps != 0 && gate.size() != 0; --steps)
      loop.run_one_step();
    gate.abandon();
    loop.kill();
    if (random.one_in(2)) host.power_loss();
  }
  probes.merge(host.probes());
  return progress;
}

std::uint64_t violations(Mistake mistake, SimProbes& probes) {
  std::uint64_t count = 0;
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    const Progress progress = run(seed, mistake, probes);
    if (!progress.violation) continue;
    ++count;
    if (mistake == Mistake::none) ADD_FAILURE() << "seed " << seed << ": " << *progress.violation;
  }
  return count;
}

TEST(SimRegister, TheRightOneSurvivesEveryDeath) {
  SimProbes probes;
  EXPECT_EQ(violations(Mistake::none, probes), 0U);
  for (const char* rare :
       {"power_loss_lost_write", "power_loss_kept_write", "power_loss_tore_write",
        "death_dropped_operation", "death_tore_operation", "dead_operation_landed",
        "lock_waited_for_dead_operations", "write_in_pieces", "read_in_pieces"}) {
    EXPECT_GT(probes.count(rare), 0U) << rare;
  }
}

TEST(SimRegister, EachWrongOneIsCaught) {
  using enum Mistake;
  SimProbes probes;
  for (const Mistake mistake :
       {no_sync, one_slot, no_checksum, no_lock, no_directory_sync, trusts_what_it_sees}) {
    EXPECT_GT(violations(mistake, probes), 0U) << static_cast<int>(mistake);
  }
  EXPECT_GT(probes.count("power_loss_lost_create"), 0U);
}

}  // namespace
}  // namespace berth
