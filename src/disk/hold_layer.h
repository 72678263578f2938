// HoldLayer: the old blocks of one cut, kept for its checkpoint and for older ones (rules 7 and 8).
//
// One append-only file of fixed slots (docs/formats/hold.md). An entry says what a block was at the
// end of the layer's epoch: its word, and its bytes, or that it was zero, or that it read the
// backing. The first entry of a block wins. append() returns when the entry is in the index and may
// be relied on: written, and, where the layer is durable, synced; entries that come together share
// a sync. On the volume's loop. A failed append leaves no entry.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/file.h"
#include "base/aligned_buffer.h"
#include "base/units.h"
#include "disk/journal.h"
#include "disk/layout.h"

namespace berth::disk {

enum class HeldKind : std::uint8_t { none = 0, data = 1, zero = 2, backing = 3 };

struct HeldBlock {
  std::uint32_t slot = 0;
  MapWord word;  // as of the layer's epoch
  HeldKind kind = HeldKind::none;
};

class HoldLayer {
 public:
  struct Identity {
    Id128 volume;
    LayerId id = 0;
    Epoch epoch = 0;
    std::uint32_t block_size = 0;  // bytes
  };
  static constexpr const char* directory_name = "holds";
  static std::string file_name(LayerId id);

  /// A new, empty layer; its name is durable after a sync of the directory.
  static Task<Result<std::shared_ptr<HoldLayer>>> create(Loop& loop, Directory& holds,
                                                         Identity identity);
  /// Reads the index. A torn tail is cut off in silence; damage before it is `corrupt`.
  static Task<Result<std::shared_ptr<HoldLayer>>> open(Loop& loop, Directory& holds,
                                                       Identity identity,
                                                       std::uint64_t block_count);

  LayerId id() const { return identity_.id; }
  Epoch epoch() const { return identity_.epoch; }

  /// What the layer holds of the block; kind none for nothing.
  HeldBlock find(BlockIndex block) const;
  bool holds(BlockIndex block) const { return find(block).kind != HeldKind::none; }
  /// Whether it may hold anything of the map page; for scans.
  bool touches_page(std::uint64_t page) const {
    return page < index_.size() && index_[page] != nullptr;
  }

  /// Whether any of it is still to be read from the backing.
  bool holds_backing() const { return backing_entries_ > 0; }

  /// `frame` is one slot in memory: a sector of header, then the block's bytes (data only).
  Task<Result<void>> append(BlockIndex block, MapWord word, HeldKind kind, AlignedBuffer& frame,
                            bool durable);
  std::size_t frame_size() const { return sector_size + identity_.block_size; }

  /// Bytes of a held block (kind data), from `offset` within it; the entry's checksum is verified
  /// when the whole block is read.
  Task<Result<void>> read(HeldBlock held, std::uint64_t offset, MutableBytes into);

  /// Makes every entry durable.
  Task<Result<void>> sync();
  /// Gives back what the file has ahead of its entries. Before a clean close, when no append is
  /// under way.
  void trim();

  std::uint64_t bytes_used() const {
    return data_entries_ * identity_.block_size + entries_ * sector_size;
  }
  std::uint64_t entries() const { return entries_; }

 private:
  HoldLayer(Loop& loop, std::unique_ptr<File> file, Identity identity)
      : file_(std::move(file)), identity_(identity), synced_(loop), window_(loop) {}

  using IndexPage = std::array<HeldBlock, words_per_page>;
  void insert(BlockIndex block, HeldBlock held);
  std::uint64_t slot_offset(std::uint64_t slot) const { return sector_size + slot * frame_size(); }
  Task<Result<void>> read_index(Loop& loop, std::uint64_t block_count);
  Task<Result<void>> sync_after(std::uint64_t ticket);
  Error bad_slot(std::uint64_t slot) const;

  /// A slot for an entry; waits while the oldest unreliable one is too far back.
  Task<std::uint64_t> take_slot();
  Task<> grow();

  // Nothing older than that many slots is ever under way, and the file reaches as far beyond what
  // is: an entry that is torn or was never written lies within twice that of the end.
  static constexpr std::uint64_t slots_in_flight_max = 256;
  static constexpr std::uint64_t slots_ahead_min = 16;
  static constexpr std::uint64_t bytes_ahead_max = 16 * MiB;

  std::unique_ptr<File> file_;
  Identity identity_;
  std::vector<std::unique_ptr<IndexPage>> index_;
  std::uint64_t entries_ = 0;
  std::uint64_t data_entries_ = 0;
  std::uint64_t backing_entries_ = 0;
  std::uint64_t next_slot_ = 0;
  // The file has space for the slots before this one. A write that makes a file longer waits for
  // every other one, and for the file system's journal; into space that is there it does not.
  std::uint64_t slots_allocated_ = 0;
  bool growing_ = false;
  std::set<std::uint64_t> unreliable_;  // slots taken or torn, and not yet relied on
  std::vector<std::uint64_t> torn_;     // of these, the ones to be written first, from the back

  // Group commit: a sync serves everybody whose write had ended when it began.
  Event synced_;
  Event window_;
  std::uint64_t syncs_begun_ = 0;
  std::uint64_t syncs_ended_ = 0;
  bool sync_running_ = false;
  std::optional<Error> sync_error_;
};

}  // namespace berth::disk
