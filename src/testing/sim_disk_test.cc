// The whole simulated disk against a model: four clients write numbered versions of their own
// sectors, sync, die with their process, and lose power.
//
// Invariants: after power loss a sector holds a version between the last one that a sync covered
// and the last one submitted; after process death, once the file is locked again, one between the
// last one completed and the last one submitted, and it does not change any more; a read without a
// death sees the last one.
#include <array>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "async/gate.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"

namespace berth {
namespace {

constexpr std::uint64_t clients = 4;
constexpr std::uint64_t client_sectors = 64;  // each client's are contiguous, but not page aligned
constexpr std::uint64_t file_sectors = clients * client_sectors + 3;

struct Versions {
  std::uint64_t durable = 0;    // at least
  std::uint64_t completed = 0;  // at least
  std::uint64_t submitted = 0;
};

struct Model {
  std::vector<Versions> sectors = std::vector<Versions>(file_sectors);
};

using Buffer = std::array<std::byte, 24 * sim_sector_size>;

std::uint64_t version_in(const Buffer& buffer, std::uint64_t sector) {
  const std::byte* start = buffer.data() + sector * sim_sector_size;
  const auto version = load_le<std::uint64_t>(start);
  for (std::size_t at = 8; at < sim_sector_size; at += 8) {
    EXPECT_EQ(load_le<std::uint64_t>(start + at), version) << "a sector is torn";
  }
  return version;
}

class Client {
 public:
  Client(File& file, Model& model, std::uint64_t number, SimRandom& random)
      : file_(file), model_(model), first_(3 + number * client_sectors), random_(random) {}

  Task<> live() {
    for (;;) {
      const std::uint64_t count = random_.between(1, 24);
      const std::uint64_t sector = first_ + random_.below(client_sectors - count + 1);
      const std::uint64_t what = random_.below(8);
      if (what < 4) {
        co_await write(sector, count);
      } else if (what < 7) {
        co_await read(sector, count);
      } else {
        co_await sync();
      }
    }
  }

 private:
  Task<> write(std::uint64_t sector, std::uint64_t count) {
    const auto sectors = std::span(model_.sectors).subspan(sector, count);
    for (std::uint64_t i = 0; i < count; ++i) {
      ++sectors[i].submitted;
      for (std::size_t at = 0; at < sim_sector_size; at += 8) {
        store_le(buffer_.data() + i * sim_sector_size + at, sectors[i].submitted);
      }
    }
    MUST(co_await file_.write(sector * sim_sector_size,
                              Bytes(buffer_).first(count * sim_sector_size)));
    for (Versions& versions : sectors) versions.completed = versions.submitted;
  }

  Task<> read(std::uint64_t sector, std::uint64_t count) {
    const std::size_t length = count * sim_sector_size;
    EXPECT_EQ(
        MUST(co_await file_.read(sector * sim_sector_size, MutableBytes(buffer_).first(length))),
        length);
    for (std::uint64_t i = 0; i < count; ++i) {
      EXPECT_EQ(version_in(buffer_, i), model_.sectors[sector + i].submitted);
    }
  }

  Task<> sync() {
    std::vector<Versions> before = model_.sectors;
    MUST(co_await file_.sync());
    for (std::uint64_t i = 0; i < file_sectors; ++i) {
      model_.sectors[i].durable = std::max(model_.sectors[i].durable, before[i].completed);
    }
  }

  File& file_;
  Model& model_;
  std::uint64_t first_;
  SimRandom& random_;
  Buffer buffer_{};
};

/// Checks every sector against what may be there, and takes it as what is there.
Task<> look(File& file, Model& model, bool power_was_lost, std::uint64_t seed) {
  Buffer buffer{};
  for (std::uint64_t sector = 0; sector < file_sectors; ++sector) {
    MUST(co_await file.read(sector * sim_sector_size, MutableBytes(buffer).first(sim_sector_size)));
    Versions& versions = model.sectors[sector];
    const std::uint64_t found = version_in(buffer, 0);
    EXPECT_GE(found, power_was_lost ? versions.durable : versions.completed) << "seed " << seed;
    EXPECT_LE(found, versions.submitted) << "seed " << seed;
    versions.completed = versions.submitted = found;
    if (power_was_lost) versions.durable = found;
  }
}

TEST(SimDisk, KeepsItsPromisesThroughEveryDeath) {
  SimProbes probes;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    SimHost host(seed);
    SimLoop loop(host, seed);
    SimRandom random(seed);
    Model model;
    bool power_was_lost = true;
    for (int life = 0; life < 5; ++life) {
      const auto directory = MUST(host.open_directory(loop, "vol"));
      auto file = MUST(directory->open("data", {.create = true, .lock = true}));
      if (life == 0) {
        MUST(directory->sync());
        MUST(file->truncate(file_sectors * sim_sector_size));
        MUST(loop.run_until_complete(
            [](File& of) -> Task<Result<void>> { co_return co_await of.sync(); }(*file)));
      }
      loop.run_until_complete(look(*file, model, power_was_lost, seed));
      std::vector<std::unique_ptr<Client>> living;
      Gate gate(loop);
      for (std::uint64_t i = 0; i < clients; ++i) {
        living.push_back(std::make_unique<Client>(*file, model, i, random));
        gate.spawn(living.back()->live());
      }
      for (std::uint64_t steps = random.below(300); steps != 0; --steps) loop.run_one_step();
      gate.abandon();
      living.clear();
      file.reset();
      loop.kill();
      power_was_lost = random.one_in(2);
      if (power_was_lost) host.power_loss();
    }
    probes.merge(host.probes());
    if (HasFailure()) break;
  }
  for (const char* rare :
       {"power_loss_lost_write", "power_loss_kept_write", "power_loss_tore_write",
        "power_loss_reordered_writes", "death_dropped_operation", "death_tore_operation",
        "dead_operation_landed", "lock_waited_for_dead_operations"}) {
    EXPECT_GT(probes.count(rare), 0U) << rare;
  }
}

}  // namespace
}  // namespace berth
