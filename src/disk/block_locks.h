// BlockLocks: who may touch which blocks' data. Shared: writes in place. Exclusive: whatever moves
// a block from one state to another (hold, fill, zero, the first whole write, a write of part of a
// sector).
//
// Blocks share buckets, so two unrelated blocks may exclude each other. Nobody may wait for one
// lock while holding another, nor for anything that needs a lock; I/O is fine. On one loop.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "async/event.h"
#include "disk/types.h"

namespace berth::disk {

class BlockLocks {
 public:
  explicit BlockLocks(Loop& loop) : freed_(loop) {}

  /// Releases the lock when it goes.
  class Guard {
   public:
    Guard(BlockLocks& locks, BlockIndex first, BlockIndex last, bool exclusive)
        : locks_(&locks), first_(first), last_(last), exclusive_(exclusive) {}
    Guard(Guard&& other) noexcept
        : locks_(std::exchange(other.locks_, nullptr)),
          first_(other.first_),
          last_(other.last_),
          exclusive_(other.exclusive_) {}
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
      if (locks_ != nullptr) locks_->release(first_, last_, exclusive_);
    }

   private:
    BlockLocks* locks_;
    BlockIndex first_;
    BlockIndex last_;
    bool exclusive_;
  };

  bool try_shared(BlockIndex first, BlockIndex last) {
    for (BlockIndex block = first; block <= last; ++block) {
      if (bucket(block).exclusive) [[unlikely]]
        return false;
    }
    for (BlockIndex block = first; block <= last; ++block) ++bucket(block).shared;
    return true;
  }
  Guard adopt_shared(BlockIndex first, BlockIndex last) { return {*this, first, last, false}; }

  /// All of the blocks at once, or none; at most bucket_count of them.
  bool try_exclusive(BlockIndex first, BlockIndex last) {
    if (last - first >= bucket_count) return false;
    for (BlockIndex block = first; block <= last; ++block) {
      if (bucket(block).exclusive || bucket(block).shared != 0) return false;
    }
    for (BlockIndex block = first; block <= last; ++block) bucket(block).exclusive = true;
    return true;
  }
  Guard adopt_exclusive(BlockIndex first, BlockIndex last) { return {*this, first, last, true}; }

  /// Until some lock that somebody waited for has been released.
  auto wait() { return freed_.wait(); }

  /// One block, exclusively.
  Task<Guard> exclusive(BlockIndex block) {
    Bucket& mine = bucket(block);
    while (mine.exclusive) co_await wait();
    mine.exclusive = true;  // nobody new comes in; those inside leave
    while (mine.shared != 0) co_await wait();
    co_return Guard(*this, block, block, true);
  }

 private:
  static constexpr std::size_t bucket_count = 4096;
  struct Bucket {
    std::uint32_t shared = 0;
    bool exclusive = false;
  };
  Bucket& bucket(BlockIndex block) { return buckets_[block % bucket_count]; }

  void release(BlockIndex first, BlockIndex last, bool exclusive) {
    for (BlockIndex block = first; block <= last; ++block) {
      if (exclusive) {
        bucket(block).exclusive = false;
      } else {
        --bucket(block).shared;
      }
    }
    if (freed_.has_waiters()) freed_.notify_all();
  }

  std::array<Bucket, bucket_count> buckets_{};
  Event freed_;
};

}  // namespace berth::disk
