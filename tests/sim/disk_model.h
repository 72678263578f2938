// DiskModel: what a disk may hold, by the contract of Volume and nothing else. Something obviously
// right for the engine to be held against.
//
// The disk is modelled in sectors of 512 bytes, the unit that may be torn. Every write gives each
// sector that it covers a new version: a value, when it was submitted, and when it was
// acknowledged. Two versions are ordered only if one was acknowledged before the other was
// submitted. From that follows what a read, a checkpoint, or the disk after a power loss may show:
// anything that nothing later has replaced for sure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace berth::sim {

constexpr std::uint64_t model_sector = 512;  // bytes
using Tick = std::uint64_t;                  // a point in the order of everything that the test did
constexpr Tick never = UINT64_MAX;

/// Content of a sector: a value, spread over it together with the sector's number; 0 is zeros.
using Value = std::uint64_t;
constexpr Value zeros = 0;
constexpr Value backing_content = 1;
constexpr Value first_written = 16;
constexpr Value garbage = UINT64_MAX;  // what no write ever wrote

void fill_sector(std::uint64_t sector, Value value, MutableBytes into);
Value read_sector(std::uint64_t sector, Bytes content);

struct Version {
  Value value = zeros;
  Tick submitted = 0;
  Tick acknowledged = never;
  bool certain = true;  // false: a discard, which may do nothing
};

/// Values that a sector may have had at a cut. Shrinks to one when it has been seen.
using Possible = std::vector<Value>;

class DiskModel {
 public:
  /// Sectors that are followed, by number; the others are never written.
  DiskModel(std::vector<std::uint64_t> sectors, Value initial);

  Tick now() { return ++tick_; }
  const std::vector<std::uint64_t>& sectors() const { return sectors_; }
  bool follows(std::uint64_t sector) const { return histories_.contains(sector); }
  Value next_value() { return next_value_++; }

  /// A change of [first, first + count) begins; the followed sectors get a version each.
  void submit(std::uint64_t first, std::uint64_t count, Value value, Tick at, bool certain);
  /// The change that was submitted at `submitted` has ended.
  void acknowledge(std::uint64_t first, std::uint64_t count, Tick submitted, Tick at);

  /// Whether the sector may have shown `value` at some moment from `start` to `end`.
  bool is_possible(std::uint64_t sector, Value value, Tick start, Tick end) const;
  Possible possible(std::uint64_t sector, Tick start, Tick end) const;

  /// The sector was seen while nothing was in flight. `durable`: what was before cannot come back.
  void observe(std::uint64_t sector, Value value, Tick at, bool durable);

  /// "value 17 submitted 3 acknowledged 9, ..." for messages.
  std::string describe(std::uint64_t sector) const;

 private:
  std::vector<std::uint64_t> sectors_;
  std::map<std::uint64_t, std::vector<Version>> histories_;
  Tick tick_ = 0;
  Value next_value_ = first_written;
};

}  // namespace berth::sim
