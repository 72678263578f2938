// FaultPlan: which operations of a SimHost fail or are slow. A fault names operations of some kinds
// on files whose path matches; it lets `skip` of them pass, then hits `times` of them, each by
// `chance`.
//
//   // The third sync of the map:
//   host.faults().add({.path = "*/map", .on = fault_on::sync, .skip = 2});
//   // Some five writes, one of a hundred, to any file:
//   host.faults().add({.on = fault_on::write, .error = ENOSPC, .times = 5, .chance = 0.01});
//
// A failed write may have reached the file in part, sector by sector. A failed sync does what Linux
// does: what was dirty goes back to the durable content, or stays to be read and never becomes
// durable, or had become durable after all. A read is never short.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "testing/sim_random.h"

namespace berth {

/// Kinds of operations, to be combined with |.
namespace fault_on {
constexpr std::uint32_t read = 1U << 0;
constexpr std::uint32_t write = 1U << 1;
constexpr std::uint32_t sync = 1U << 2;
constexpr std::uint32_t punch = 1U << 3;
constexpr std::uint32_t zero = 1U << 4;
constexpr std::uint32_t open = 1U << 5;
constexpr std::uint32_t truncate = 1U << 6;
constexpr std::uint32_t remove = 1U << 7;
constexpr std::uint32_t rename = 1U << 8;
constexpr std::uint32_t sync_directory = 1U << 9;
constexpr std::uint32_t list = 1U << 10;
constexpr std::uint32_t query = 1U << 11;  // size, identity, next_data, next_hole, exists
constexpr std::uint32_t any = ~0U;
}  // namespace fault_on

struct Fault {
  std::string path = "*";  // fnmatch(3) pattern of the path from the host's root: "vol/data"
  std::uint32_t on = fault_on::any;  // which kinds of operations
  int error = EIO;                   // what they end with; 0: nothing fails, for delays
  std::uint64_t skip = 0;            // this many matching operations pass first
  std::uint64_t times = 1;           // then at most this many are hit
  double chance = 1;                 // of each being hit
  Duration delay{};                  // added to what a read, write, sync, punch or zero takes
};

class FaultPlan {
 public:
  struct Verdict {
    int error = 0;
    Duration delay{};
  };

  void add(Fault fault) { faults_.push_back(std::move(fault)); }
  void clear() { faults_.clear(); }
  /// Operations hit so far.
  std::uint64_t hits() const { return hits_; }

  /// Called by the host once for every operation.
  Verdict decide(std::uint32_t kind, const std::string& path, SimRandom& random);

 private:
  std::vector<Fault> faults_;
  std::uint64_t hits_ = 0;
};

}  // namespace berth
