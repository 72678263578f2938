// IntentLog: which regions of a volume are hot, that is, may have been written since their map
// pages went to disk. No data goes into a region before the region's intent is durable (rule 3).
//
// announce() returns when the regions are hot in the given epoch; requests that come together share
// one commit. The hot set is bounded; when it fills up, `request_cooling` is called, and the
// engine, having flushed the map, cools what it may. On the volume's loop.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "disk/map_file.h"

namespace berth::disk {

class IntentLog {
 public:
  /// `tasks` owns the commits; `request_cooling` starts a flush of the map that ends in cool().
  IntentLog(Loop& loop, Gate& tasks, MapFile& map, std::size_t hot_regions_max,
            std::function<void()> request_cooling);

  /// After open: the regions of the newest record, and where the ring goes on.
  void restore(const IntentRecord& newest);
  /// The volume has this many regions from now on.
  void set_region_count(std::uint64_t count);

  /// Whether data may be written into the region in this epoch. One load and compare.
  bool is_hot(std::uint64_t region, Epoch epoch) const { return hot_epoch_[region] >= epoch; }

  /// Makes the regions [first, last] hot, at most announce_max of them. They may have cooled again
  /// when this returns: ask is_hot() before submitting.
  Task<Result<void>> announce(std::uint64_t first, std::uint64_t last, Epoch epoch);
  static constexpr std::uint64_t announce_max = 32 * MiB / region_size + 2;

  /// Brackets every write that changes map words of the region: meanwhile it does not cool, and
  /// after it only when a flush has captured the map since.
  void enter(std::uint64_t region) {
    ++in_flight_[region];
    touched_[region] = ++activations_;
  }
  void leave(std::uint64_t region) { --in_flight_[region]; }

  /// A point in the order of announcements and writes; taken before a flush captures the map.
  std::uint64_t now() const { return activations_; }
  /// Forgets the regions without writes in flight or since `captured`, oldest first, until `keep`
  /// are left. Their map pages must be durable, captured at or after that point.
  void cool(std::uint64_t captured, std::size_t keep);

  std::size_t hot_count() const { return hot_count_; }
  std::size_t hot_max() const { return hot_max_; }
  std::uint64_t sequence() const { return sequence_; }
  Epoch newest_hot_epoch() const;
  /// Room could not be made: those who wait get this error, and what they announced is forgotten.
  void refuse_pending(Error error);
  /// No flush of the map can succeed any more: everybody who waits, or will, gets this error.
  void fail(Error error);

 private:
  struct Entry {
    std::uint32_t region = 0;
    std::uint64_t activation = 0;
  };
  Task<> commit_loop();
  IntentRecord next_record() const;
  void make_hot(std::uint32_t region, Epoch epoch);
  bool pending_fits() const;
  bool is_current(const Entry& entry) const {
    return hot_epoch_[entry.region] != 0 && activation_[entry.region] == entry.activation;
  }

  Gate& tasks_;
  MapFile& map_;
  std::size_t hot_max_;
  std::function<void()> request_cooling_;

  // By region.
  std::vector<Epoch> hot_epoch_;           // 0: cold
  std::vector<Epoch> pending_epoch_;       // wanted by the next commit; 0: not wanted
  std::vector<std::uint16_t> in_flight_;   // writes between enter() and leave()
  std::vector<std::uint64_t> activation_;  // when it last became hot
  std::vector<std::uint64_t> touched_;     // when the last write entered

  std::vector<Entry>
      hot_;  // oldest first; an entry whose region was activated again since is stale
  std::size_t hot_count_ = 0;
  std::vector<std::uint32_t> pending_;
  std::uint64_t activations_ = 0;
  std::uint64_t sequence_ = 0;
  bool committing_ = false;
  std::optional<Error> error_;    // for good
  std::optional<Error> refusal_;  // of everything announced before refusals_ was counted up
  std::uint64_t refusals_ = 0;
  Event changed_;
};

}  // namespace berth::disk
