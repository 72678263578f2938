// MapFile: the block map on disk. Reads and writes what layout.h and journal.h define, in the order
// that the rules want; the engine above decides when.
//
// One per open volume, on its loop. The file is locked while this lives. A failed sync is
// remembered: from then on nothing is written any more and every call fails with io_error (rule 4).
#pragma once

#include <memory>
#include <optional>

#include "async/event.h"
#include "async/file.h"
#include "base/aligned_buffer.h"
#include "disk/journal.h"
#include "disk/layout.h"

namespace berth::disk {

class MapFile {
 public:
  static constexpr const char* file_name = "map";

  /// A new map with this state, durable but for its name (the caller syncs the directory).
  static Task<Result<void>> create(Loop& loop, Directory& directory, Superblock superblock,
                                   VolumeState state);

  /// Reads the superblock and the journal; syncs first, so that nothing that is read can be lost
  /// later.
  static Task<Result<std::unique_ptr<MapFile>>> open(Loop& loop, Directory& directory,
                                                     bool read_only);

  const Superblock& superblock() const { return superblock_; }
  const VolumeState& state() const { return state_; }
  /// The volume's own id. The superblock's is the mark that its structures bear (journal.h).
  const Id128& volume() const { return state_.volume; }
  bool failed() const { return failed_; }

  /// Makes the event durable, then applies it. Events of one volume are appended one after the
  /// other.
  Task<Result<void>> append(JournalEvent event);

  Task<Result<IntentRing>> read_intents();
  /// Durable when it returns. One at a time; record.sequence must grow by one.
  Task<Result<void>> write_intents(IntentRecord record);

  struct LoadedPage {
    std::uint64_t sequence = 0;  // 0: neither slot holds it; every word is zero
    bool damaged = false;        // both slots hold bytes, and neither a page
    // The slot that does not count has not what it should: a write was cut short, or it was damaged
    // later and may have been the newer one. The volume's sum of sequences tells which.
    bool doubtful = false;
  };
  /// Pages [first, first + count) into `words` (count * words_per_page of them).
  Task<Result<std::vector<LoadedPage>>> read_pages(std::uint64_t first, std::size_t count,
                                                   std::span<MapWord> words);
  /// The first page at or after `page` that may have been written, or page_count (blocking).
  Result<std::uint64_t> next_written_page(std::uint64_t page, std::uint64_t page_count);
  /// Writes this version of a page, encoded, into its slot; durable after sync().
  Task<Result<void>> write_page(std::uint64_t page, std::uint64_t sequence, Bytes encoded);
  /// Forgets, durably, every page from `page_count` on.
  Task<Result<void>> truncate_pages(std::uint64_t page_count);
  /// Writes zeros where a copy has left holes in what is allocated from the beginning on: the ring,
  /// and the beginnings of the areas. Durable after sync().
  Task<Result<void>> fill_holes();
  Task<Result<void>> sync();

 private:
  MapFile(Loop& loop, std::unique_ptr<File> file) : file_(std::move(file)), journal_mutex_(loop) {}

  struct Area {
    std::uint64_t generation = 0;
    VolumeState state;
    std::uint64_t sequence = 0;  // of the last record
    std::uint64_t end = 0;       // bytes used
  };
  Task<Result<void>> read_superblock();
  Task<Result<void>> read_journal();
  Task<Result<std::optional<Area>>> read_area(std::uint64_t offset);
  Task<Result<std::optional<JournalRecord>>> read_record(std::uint64_t offset,
                                                         std::uint64_t area_left,
                                                         std::uint64_t* padded_length);
  Task<Result<bool>> has_later_record(std::uint64_t offset, std::uint64_t area_end,
                                      std::uint64_t generation, std::uint64_t sequence);
  Task<Result<void>> write_aligned(std::uint64_t offset, Bytes bytes);
  Task<Result<void>> compact();
  Result<void> usable() const;

  std::unique_ptr<File> file_;
  Superblock superblock_;
  VolumeState state_;
  AsyncMutex journal_mutex_;
  unsigned area_ = 0;  // 0: A, 1: B
  std::uint64_t generation_ = 0;
  std::uint64_t sequence_ = 0;     // of the last record written
  std::uint64_t journal_end_ = 0;  // bytes used in the area
  AlignedBuffer intent_buffer_;
  bool failed_ = false;
};

}  // namespace berth::disk
