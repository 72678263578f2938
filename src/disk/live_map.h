// LiveMap: the block map in shared memory. It outlives the process, so that a keeper's death loses
// nothing; it does not outlive the machine (DESIGN §5, "Two kinds of death").
//
// Layout: a header sector, a table of pages, then all words in a row. Words are read and written on
// the volume's loop only. A page's flags say what its disk version lacks; a flush moves them to
// "capturing" and clears them when the page is durable, so that a death in between leaves the page
// dirty.
//
// The process may be killed between any two instructions. So where one store must not be without
// another, the other comes first, and the one is a single store of its own (store_last).
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "async/memory.h"
#include "base/ids.h"
#include "disk/layout.h"

namespace berth::disk {

/// What of a page is not on disk. Epochs are covered by the intents; states only by a flush.
enum PageDirt : std::uint8_t {
  clean_page = 0,
  dirty_epochs = 1,
  dirty_states = 2,
  capturing_shift = 2,  // the same two bits, while a flush is writing them
  capturing_dirt = 0xc,
};

struct LivePage {
  std::uint64_t sequence = 0;  // of the version on disk, and with it its slot; 0: never written
  Epoch epoch_max = 0;         // no word of the page is newer
  std::uint8_t dirt = clean_page;
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(sizeof(LivePage) == 16);

/// One store that whoever maps the memory later does not see without those before it.
template <typename T>
void store_last(T& target, T value) {
  std::atomic_ref<T>(target).store(value, std::memory_order_release);
}

class LiveMap {
 public:
  struct Key {
    Id128 volume;
    Id128 session;
    std::uint32_t block_size = 0;
    std::uint64_t page_count = 0;
  };

  /// A new map of zero words.
  static Result<LiveMap> create(SharedMemoryStore& store, const Key& key, Epoch epoch);
  /// The map that a dead process left, if it is this very volume's, session's and boot's; else
  /// not_found.
  static Result<LiveMap> adopt(SharedMemoryStore& store, const Key& key);
  static Result<void> remove(SharedMemoryStore& store, const Id128& volume,
                             std::uint64_t page_count);

  /// From here on the map belongs to another session.
  void set_session(const Id128& session);
  /// The number of pages of the map that is about to take this one's place, 0 for none: told
  /// before it is made, so that whoever adopts this one in its stead can remove it.
  std::uint64_t successor() const;
  void set_successor(std::uint64_t page_count);

  Epoch epoch() const;
  void set_epoch(Epoch epoch);

  MapWord word(BlockIndex block) const { return words_[block]; }
  /// Sets the word and marks its page dirty.
  void set_word(BlockIndex block, MapWord word) {
    const MapWord old = words_[block];
    if (old == word) return;
    LivePage& page = pages_[page_of(block)];
    if (page.epoch_max < word.epoch()) page.epoch_max = word.epoch();
    if (old.epoch() != word.epoch()) mark_dirty(page_of(block), dirty_epochs);
    if (old.state() != word.state()) mark_dirty(page_of(block), dirty_states);
    store_last(words_[block], word);
  }

  /// The page has dirt of this kind (both bits: of both).
  void mark_dirty(std::uint64_t index, std::uint8_t dirt);
  /// A flush begins to write the page as it is now.
  void begin_capture(std::uint64_t index);
  /// The page that it captured is durable, in its next version.
  void end_capture(std::uint64_t index);
  /// What a flush was writing, or had taken, is dirty as before.
  void relist(std::uint64_t index);
  /// The pages that have any dirt of these kinds now, ascending. They are no longer listed as such:
  /// the caller captures them, or marks them again.
  std::vector<std::uint64_t> take_dirty(std::uint8_t dirt);

  std::uint64_t page_count() const { return pages_.size(); }
  LivePage& page(std::uint64_t index) { return pages_[index]; }
  const LivePage& page(std::uint64_t index) const { return pages_[index]; }
  std::span<MapWord> page_words(std::uint64_t index) {
    return words_.subspan(index * words_per_page, words_per_page);
  }
  std::span<const MapWord> words() const { return words_; }
  /// The sum of the pages' sequences.
  std::uint64_t page_versions() const;

 private:
  explicit LiveMap(std::unique_ptr<SharedMemory> memory) : memory_(std::move(memory)) {}
  struct Header;
  Header& header() const;
  void locate(std::uint64_t page_count);

  std::unique_ptr<SharedMemory> memory_;
  std::span<LivePage> pages_;
  std::span<MapWord> words_;
  // Pages that became dirty, by kind of dirt; may name one twice, or one that is clean again.
  std::vector<std::uint64_t> with_dirty_epochs_;
  std::vector<std::uint64_t> with_dirty_states_;
};

}  // namespace berth::disk
