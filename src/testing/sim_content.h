// SimContent: the bytes of one simulated file, in two views: what reads see (it survives the death
// of a process), and what is durable (it survives power loss), with every version of every 512-byte
// sector that was written in between. Owned by its file; knows nothing of time, names or requests.
//
// Pages are shared between versions and never changed in place, so that a write of a whole page
// costs no copy and a sync moves pointers. Space counts pages that reads see; holes count nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "testing/sim_probes.h"
#include "testing/sim_random.h"

namespace berth {

constexpr std::size_t sim_page_size = 4096;   // bytes; what space is given in
constexpr std::size_t sim_sector_size = 512;  // bytes; what is written whole or not at all
constexpr std::size_t sim_page_sectors = sim_page_size / sim_sector_size;

/// Sectors of one page, bit 0 the first.
using SimSectors = std::uint8_t;
constexpr SimSectors sim_all_sectors = 0xff;
/// Those that the bytes begin..end of a page touch.
constexpr SimSectors sim_sectors_of(std::size_t begin, std::size_t end) {
  const std::size_t first = begin / sim_sector_size;
  const std::size_t last = (end + sim_sector_size - 1) / sim_sector_size;
  return static_cast<SimSectors>((0xffU << first) & ((1U << last) - 1));
}

/// A counted reference to 4 KiB; null stands for a hole.
class SimPage {
 public:
  SimPage() = default;
  SimPage(std::nullptr_t) {}  // NOLINT(google-explicit-constructor): a hole
  static SimPage uninitialised() { return SimPage(new Memory); }
  SimPage(const SimPage& other) : memory_(other.memory_) {
    if (memory_ != nullptr) ++memory_->references;
  }
  SimPage(SimPage&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  SimPage& operator=(SimPage other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~SimPage() {
    if (memory_ != nullptr && --memory_->references == 0) delete memory_;
  }
  std::byte* data() const { return memory_->bytes.data(); }
  explicit operator bool() const { return memory_ != nullptr; }
  friend bool operator==(const SimPage&, const SimPage&) = default;

 private:
  struct Memory {
    std::array<std::byte, sim_page_size> bytes;
    std::uint32_t references = 1;
  };
  explicit SimPage(Memory* memory) : memory_(memory) {}
  Memory* memory_ = nullptr;
};

/// What the files of one host share. Ends after all of them.
struct SimDisk {
  std::uint64_t sequence = 0;  // of the last change to any file
  std::uint64_t pages_used = 0;
};

/// Which unsynced changes a power loss spares; chosen anew, by seed, for every loss and file.
struct SimSurvival {
  enum class Style : std::uint8_t {
    nothing,
    everything,
    sectors,     // any version of each sector
    operations,  // each operation as a whole, or not
    prefix,      // all up to a point in time, for all files that are given the same point
  };
  Style style = Style::sectors;
  std::uint64_t salt = 0;          // for `operations`
  std::uint64_t sequence_max = 0;  // for `prefix`

  static SimSurvival choose(SimRandom& random, std::uint64_t sequence);
};

/// What became of each operation's sectors, over all files, for the probes.
using SimFates = std::unordered_map<std::uint64_t, std::uint8_t>;
constexpr std::uint8_t sim_fate_survived = 1;
constexpr std::uint8_t sim_fate_lost = 2;

class SimContent {
 public:
  explicit SimContent(SimDisk& disk) : disk_(disk) {}
  /// The same bytes, versions and all, on another host's disk.
  SimContent(const SimContent& other, SimDisk& disk);
  SimContent(const SimContent&) = delete;
  SimContent& operator=(const SimContent&) = delete;
  ~SimContent() { disk_.pages_used -= pages_used_; }

  std::uint64_t size() const { return size_; }
  std::uint64_t pages_used() const { return pages_used_; }
  bool has_page(std::uint64_t page) const;
  std::uint64_t next_data(std::uint64_t offset) const;
  std::uint64_t next_hole(std::uint64_t offset) const;
  /// Bytes beyond the size are zero.
  void read(std::uint64_t offset, MutableBytes into) const;
  /// The same of the durable view.
  void read_durable(std::uint64_t offset, MutableBytes into) const;
  std::uint64_t durable_size() const { return durable_size_; }

  /// A part of one page and of an operation: bytes begin..end of the page, in the given sectors
  /// only.
  struct Piece {
    std::uint64_t page = 0;
    std::size_t begin = 0;
    std::size_t end = sim_page_size;
    SimSectors sectors = sim_all_sectors;
    std::uint64_t operation = 0;
  };
  /// `source` holds the bytes at the same place within a page. Extends the file where it must.
  void write(const Piece& piece, const SimPage& source);
  /// Zeros; whole pages become holes. The size stays. With `chance_of`, each page is cleared or
  /// not: what an operation cut short has done.
  void clear(std::uint64_t offset, std::uint64_t length, std::uint64_t operation,
             SimRandom* chance_of = nullptr);
  void truncate(std::uint64_t size, std::uint64_t operation);
  /// Into an empty file: what reads of the other one see.
  void copy_from(const SimContent& other, std::uint64_t operation);

  /// Everything up to `sequence` becomes durable.
  void sync(std::uint64_t sequence);
  /// What a failed sync leaves of everything up to `sequence` (fault_plan.h).
  void fail_sync(std::uint64_t sequence, SimRandom& random, SimProbes& probes);
  /// Both views become what the loss left.
  void power_loss(const SimSurvival& survival, SimRandom& random, SimFates& fates);
  /// Changes the bytes in both views, as a failing medium would.
  void corrupt(std::uint64_t offset, std::size_t length, SimRandom& random);

 private:
  /// What one change made of a page. The page is as reads saw it then; only `sectors` are the
  /// change's.
  struct Version {
    std::uint64_t sequence = 0;
    std::uint64_t operation = 0;
    SimPage page;
    SimSectors sectors = 0;
  };
  struct Slot {
    SimPage current;
    SimPage durable;
    std::vector<Version> versions;  // not yet durable, the oldest first
    SimSectors stranded = 0;        // differ from `durable` for good: left over from a failed sync
    bool listed = false;            // in dirty_pages_
  };
  struct Resize {
    std::uint64_t sequence = 0;
    std::uint64_t operation = 0;
    std::uint64_t size = 0;
  };
  static constexpr std::size_t chunk_pages = 32;
  using Chunk = std::array<Slot, chunk_pages>;

  const Slot* find(std::uint64_t page) const;
  Slot& slot(std::uint64_t page);
  void set_current(Slot& slot, SimPage page);
  void clear_page(const Piece& piece);
  void add_version(std::uint64_t page, Slot& slot, SimSectors sectors, std::uint64_t operation);
  void resize(std::uint64_t size, std::uint64_t operation);
  static void make_durable(Slot& slot, std::size_t version_count);
  static SimPage survivor(const Slot& slot, const SimSurvival& survival, SimRandom& random,
                          SimFates& fates);
  std::uint64_t surviving_size(const SimSurvival& survival, SimRandom& random,
                               SimFates& fates) const;
  void cut_off(std::uint64_t size);
  template <typename Visit>
  void for_each_slot(std::uint64_t first_page, std::uint64_t end_page, Visit visit);

  SimDisk& disk_;
  std::map<std::uint64_t, std::unique_ptr<Chunk>> chunks_;  // by page / chunk_pages
  mutable std::uint64_t cached_index_ = UINT64_MAX;         // of the chunk used last
  mutable Chunk* cached_chunk_ = nullptr;
  std::vector<std::uint64_t> dirty_pages_;  // those with versions or stranded sectors
  std::vector<Resize> resizes_;             // not yet durable, the oldest first
  std::uint64_t size_ = 0;
  std::uint64_t durable_size_ = 0;
  std::uint64_t pages_used_ = 0;
};

}  // namespace berth
