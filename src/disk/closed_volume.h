// ClosedVolume: a volume that nobody has open, held under its locks: to be looked at, copied, or
// told that it has come to another place.
//
// What its points are worth hangs on one data file, which the map knows by size, inode and time of
// modification of the last clean close (DESIGN §5, rule 9). In a directory that was moved or copied
// the file has another inode, and the next open would give every point up. settle() says instead
// what happened; it is one record of the journal, so it has happened or it has not, and it may be
// repeated after a death at any step.
//
// On the loop of `directory`, which outlives it. The locks of `map` and `data` are held while this
// lives, as by an open volume.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/file.h"
#include "async/loop.h"
#include "async/task.h"
#include "base/ids.h"
#include "disk/map_file.h"

namespace berth::disk {

/// How the directory came to where it is.
enum class Arrival : std::uint8_t {
  moved,   // the original is gone: this is the same volume, and every point of it stays good
  copied,  // the original goes on: this becomes another volume, and reference points begin anew
};

/// What settle() has made of the volume.
struct Settled {
  Id128 volume;  // its id from now on
  // Of a copy, reference points that were good before and are void now, and the checkpoints that
  // were lost: all of them where the data file was changed since the close, else none.
  std::vector<std::string> void_refpoints;
  std::vector<std::string> lost_checkpoints;
};

class ClosedVolume {
 public:
  /// not_found where there is no volume; `in_use` if somebody has it open; `corrupt` with what is
  /// wrong. Read-only, settle() and read_contents() are not to be called.
  static Task<Result<std::unique_ptr<ClosedVolume>>> open(Loop& loop, Directory& directory,
                                                          bool read_only);

  const Id128& id() const { return map_->volume(); }
  const Superblock& superblock() const { return map_->superblock(); }
  const VolumeState& state() const { return map_->state(); }

  /// `precondition` if the last to have it open did not close it: then what is in its files is less
  /// than it has acknowledged.
  Result<void> check_closed() const;
  /// Whether settle() can be done, as far as it can be told without reading everything:
  /// `precondition`, with what a person can do. A volume that was moved must have been closed, and
  /// its data file must not have been changed since.
  Result<void> check_arrival(Arrival arrival) const;

  struct Contents {
    bool needs_backing = false;  // of the disk or of a checkpoint, something is still read there
    std::uint64_t page_versions = 0;  // the sum that is there
  };
  /// Reads the pages of the map and the indexes of the holds: `corrupt` where an open would fail.
  Task<Result<Contents>> read_contents();

  /// Makes every file of it durable, then records the arrival. Of a moved volume whose data file is
  /// the recorded one already, nothing. Errors are those of check_arrival() and read_contents(),
  /// and `corrupt` for a moved volume of which parts are missing.
  Task<Result<Settled>> settle(Random& random, Arrival arrival);

 private:
  ClosedVolume(Loop& loop, Directory& directory, std::unique_ptr<MapFile> map)
      : loop_(loop), directory_(directory), map_(std::move(map)) {}

  Result<void> check_geometry() const;
  bool has_content_of_the_close() const;
  Task<Result<std::uint64_t>> read_pages(std::uint64_t* with_content);
  Task<Result<bool>> read_holds();
  Task<Result<void>> sync_files();

  Loop& loop_;
  Directory& directory_;
  std::unique_ptr<MapFile> map_;
  std::unique_ptr<File> data_;
  FileIdentity identity_;  // of the data file
  std::optional<Contents> contents_;
};

}  // namespace berth::disk
