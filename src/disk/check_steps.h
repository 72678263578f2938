// The steps of check_volume, and what they learn from each other. First everything is read
// (check_map.cc, check_holds.cc, check.cc); then, and only with `repair`, check_repair.cc does what
// the findings say.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/aligned_buffer.h"
#include "disk/check.h"
#include "disk/check_journal.h"
#include "disk/hold_format.h"
#include "disk/hold_layer.h"
#include "disk/layout.h"
#include "disk/live_map.h"

namespace berth::disk {

class VolumeCheck {
 public:
  VolumeCheck(Loop& loop, Directory& directory, CheckOptions options)
      : loop_(loop), directory_(directory), options_(options) {}

  Task<Result<CheckReport>> run();

 private:
  /// A finding, for the repair that will end it.
  struct Handle {
    std::size_t index = SIZE_MAX;  // beyond the findings that are kept: only counted
    Severity severity = Severity::note;
  };
  Handle add(Severity severity, std::string where, std::string what, bool repairable = false);
  Handle error(std::string where, std::string what, bool repairable = false) {
    return add(Severity::error, std::move(where), std::move(what), repairable);
  }
  void mark_repaired(const std::vector<Handle>& findings);

  /// Reads as far as the file goes and gives what there is. Sectors that the device does not give
  /// back are findings, and filled with bytes that no structure begins with.
  Task<Result<std::size_t>> read(File& file, std::string where, std::uint64_t offset,
                                 MutableBytes into);

  enum class PageKind : std::uint8_t {
    whole,
    torn,      // what a power loss leaves; the next write of the page mends it
    stray,     // the live map says that nothing was ever written
    one_left,  // one slot is whole, and may not be the newer one
    lost,      // none is
  };
  struct PageDamage {
    std::uint64_t page = 0;
    std::uint64_t sequence = 0;  // of the newest slot that is whole; 0: none is
    PageKind kind = PageKind::whole;
  };
  // --- check.cc. Those that answer `false` have found nothing for the later steps to stand on.
  Task<Result<void>> open_files();
  Task<Result<bool>> check_superblock();
  Task<Result<bool>> check_journal();
  Task<Result<std::vector<std::byte>>> read_area(unsigned area);
  bool check_state();
  void check_points();
  void check_layers();
  Task<Result<void>> check_data();
  Result<void> find_live_map();

  // --- check_map.cc
  Task<Result<void>> check_intents();
  Task<Result<void>> check_pages();
  void check_page(std::uint64_t page, Bytes slots);
  PageKind kind_beside_live_map(std::uint64_t page, PageKind kind,
                                const std::array<std::uint64_t, 2>& sequences) const;
  void note_words(std::uint64_t page, std::span<const MapWord> words);
  void compare_with_holds(std::uint64_t page, std::span<const MapWord> words);
  void judge_pages();
  void tell_of_pages();
  void tell_of_missing_holds();
  Result<void> check_end_of_pages();

  // --- check_holds.cc
  struct LayerCheck;
  Task<Result<void>> check_holds();
  Task<Result<void>> check_layer(const Layer& layer);
  Task<Result<bool>> check_layer_header(LayerCheck& check);
  Task<Result<void>> check_slot(LayerCheck& check, std::uint64_t slot, Bytes frame);
  Task<Result<void>> check_torn_entries();
  Task<Result<bool>> data_file_has(BlockIndex block, std::uint64_t checksum);
  void lose_layer(const Layer& layer, std::string where, std::string what);
  void lose_block(const Layer& layer, BlockIndex block, std::string where, std::string what);
  Result<void> check_leftovers();
  bool is_held(Epoch checkpoint, BlockIndex block) const;

  // --- check_repair.cc
  Task<Result<void>> repair();
  Task<Result<void>> repair_superblock();
  Task<Result<void>> repair_state();
  Task<Result<void>> repair_holds();
  Task<Result<void>> repair_pages();
  Task<Result<void>> repair_page(PageDamage damage);
  Task<Result<void>> write_map(std::uint64_t offset, Bytes bytes);

  std::uint64_t block_count() const { return divide_up(state().size, superblock_.block_size); }
  std::uint64_t page_count() const { return page_count_for(block_count()); }
  std::uint64_t block_length(BlockIndex block) const {
    const std::uint64_t start = block * superblock_.block_size;
    return std::min<std::uint64_t>(superblock_.block_size, state().size - start);
  }
  std::uint64_t slot_offset(std::uint64_t slot) const {
    return sector_size + slot * (sector_size + superblock_.block_size);
  }
  VolumeState& state() { return journal_.state; }
  const VolumeState& state() const { return journal_.state; }
  /// A live map that nobody looked for may be newer than a page that is made up here.
  bool may_repair_pages() const { return state().clean || options_.live_store != nullptr; }
  bool repairs_pages() const { return may_repair_pages() && !page_findings_.empty(); }
  /// Whether every hold is as the last process left it: what a volatile checkpoint needs.
  bool volatile_holds_count() const { return state().clean || live_.has_value(); }

  Loop& loop_;
  Directory& directory_;
  CheckOptions options_;
  CheckReport report_;

  std::unique_ptr<File> map_;
  std::unique_ptr<File> data_;  // null where there is none
  std::unique_ptr<Directory> holds_;
  std::optional<LiveMap> live_;

  Superblock superblock_;
  JournalVerdict journal_;
  Epoch newest_epoch_ = 0;  // of every word, intent and record

  // --- Damage that has a remedy.
  struct SlotRepair {
    LayerId layer = 0;
    std::uint64_t offset = 0;  // in the hold file
    BlockIndex block = 0;      // whose bytes belong there; block_none: the layer's header
    Handle finding;
  };
  struct TornEntry {
    Layer layer;
    std::uint64_t slot = 0;
    BlockIndex block = 0;
    std::uint64_t data_checksum = 0;
  };
  static constexpr BlockIndex block_none = UINT64_MAX;
  static constexpr std::size_t damaged_pages_max = 1U << 20U;  // remembered for the repair

  std::optional<std::uint64_t> bad_superblock_;  // offset of the copy to be written again
  std::vector<Handle> superblock_findings_;
  std::vector<Handle> state_findings_;  // mended by writing `journal_.state` as a new generation
  bool state_changed_ = false;
  std::vector<PageDamage> damaged_pages_;
  std::uint64_t page_versions_ = 0;         // the sum of the sequences that count
  std::uint64_t versions_unaccounted_ = 0;  // missing, and no damaged page can have lost them
  std::vector<Handle> page_findings_;
  bool pages_beyond_end_ = false;
  std::vector<Handle> end_findings_;
  std::vector<SlotRepair> slot_repairs_;

  // --- What the holds have, by layer (epochs ascending, as in the state), then by map page.
  // Of each block the epoch of its first entry.
  static constexpr Epoch not_held = UINT32_MAX;
  using HeldEpochs = std::array<Epoch, words_per_page>;
  using HeldPages = std::unordered_map<std::uint64_t, HeldEpochs>;
  std::vector<std::pair<Epoch, HeldPages>> held_;
  std::vector<TornEntry> torn_entries_;  // of slots near the ends of their layers
  struct Missing {
    std::uint64_t blocks = 0;
    BlockIndex first = 0;
  };
  std::map<std::string, Missing> missing_;  // by checkpoint
};

}  // namespace berth::disk
