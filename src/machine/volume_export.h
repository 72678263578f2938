// What NBD serves of a volume: NAME, the live disk, and NAME@CHECKPOINT, each checkpoint read-only.
//
// On the volume's loop. The volume outlives everything here. An open checkpoint export is a reader
// of its checkpoint: as long as it lives, the checkpoint cannot be released (`in_use`).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "disk/volume.h"
#include "nbd/export.h"

namespace berth::machine {

/// Metadata contexts for the changes since a reference point; bit 0 is set where something changed.
constexpr std::string_view changed_context_prefix = "berth:changed:";
constexpr std::string_view dirty_bitmap_context_prefix = "qemu:dirty-bitmap:";

/// The live disk, as it is called `name`. Its size is the one at the time of this call.
std::shared_ptr<nbd::Export> make_volume_export(disk::Volume& volume, std::string name,
                                                bool read_only);

/// How many exports of each checkpoint are open.
using CheckpointReaders = std::map<std::string, std::size_t>;

class VolumeExports final : public nbd::ExportDirectory {
 public:
  struct Options {
    std::string name;               // of the volume
    std::string default_export;     // for clients that ask for ""; "" for `name`
    bool read_only = false;         // the live disk too
    bool checkpoints_only = false;  // the live disk is not there
  };
  /// `readers` is shared by all directories of a volume.
  VolumeExports(disk::Volume& volume, std::shared_ptr<CheckpointReaders> readers, Options options);

  std::vector<nbd::ListedExport> list() override;
  Task<Result<std::shared_ptr<nbd::Export>>> find(std::string name) override;

 private:
  disk::Volume& volume_;
  std::shared_ptr<CheckpointReaders> readers_;
  Options options_;
};

/// The runs of 0 and 1 from `offset` to the end of `page`, or of the asked range: what a block
/// status reply is made of. At least one run, at most `extents_max`; `corrupt` if the page does not
/// fit the range.
Result<std::vector<nbd::StatusExtent>> status_of_changes(const disk::ChangesPage& page,
                                                         disk::Extent range,
                                                         std::size_t extents_max);

}  // namespace berth::machine
