// The volumes of one state directory, from outside: made, listed, removed. What goes on inside one
// is its keeper's.
//
// In STATE_DIR/volumes:
//
//   NAME/                        the volume (DESIGN §5), there as a whole or not at all
//   NAME/volume.json             what it is, for people and lists; the engine does not read it
//   NAME/pins/CHECKPOINT/CLONE   the volume CLONE has that checkpoint as its backing
//
// Blocking, and slow where data is copied: call it on a thread that may wait (it runs a loop of its
// own). Several processes may work on one state directory at once. A create or remove that was cut
// short leaves a directory whose name begins with a dot, which the next one clears away.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "disk/closed_volume.h"
#include "disk/volume.h"
#include "machine/control_protocol.h"
#include "machine/job_observer.h"
#include "machine/layout.h"

namespace berth::machine {

struct VolumeSummary {
  std::string name;
  std::string id;                // 36 characters
  std::uint64_t size = 0;        // bytes, as of the last open or resize
  std::uint32_t block_size = 0;  // bytes
  std::string backing;           // "" for none
  std::string adopted;           // path of the file or device that is its data, "" for its own
  std::string created_at;        // RFC 3339
  friend bool operator==(const VolumeSummary&, const VolumeSummary&) = default;
};

struct VolumeCreateRequest {
  std::string name;
  std::uint64_t size = 0;  // bytes; 0: that of what it is made from
  std::uint32_t block_size = disk::block_size_default;
  // At most one of these. A backing is written as backing_specification.h says, and so is what is
  // imported.
  std::string backing;  // absent blocks are read from it
  std::string import;   // copied into the volume
  std::string adopt;    // absolute path of a raw file or block device, used in place
  bool ext4 = false;    // or with an empty file system of this kind in it
};

struct VolumeJob {
  std::function<void(const ControlProgress&)> report;  // may be empty; on the calling thread
  std::stop_token stop;                                // ends it with `cancelled`
};

/// Such a job, as what works on a loop sees it; `what` it is, for messages: "the export". Job and
/// text outlive it.
class VolumeJobObserver final : public JobObserver {
 public:
  VolumeJobObserver(const VolumeJob& job, std::string_view what) : job_(job), what_(what) {}
  Result<void> check() const override;
  void report(const ControlProgress& progress) override;

 private:
  const VolumeJob& job_;
  std::string_view what_;
};

struct VolumeImportRequest {
  std::string name;       // that it gets
  std::string directory;  // absolute
  disk::Arrival arrival = disk::Arrival::moved;
  // The directory itself becomes the volume's, by a rename on one file system; else it is copied,
  // and stays. One that is STATE_DIR/volumes/NAME already stays where it is either way.
  bool move_files = false;
};
struct ExportedVolume {
  std::string path;
  std::string id;
  std::uint64_t bytes = 0;  // in its files, without their holes
};
struct ImportedVolume {
  VolumeSummary summary;
  // What a copy has had to give up.
  std::vector<std::string> void_refpoints;
  std::vector<std::string> lost_checkpoints;
};

class VolumeStore {
 public:
  VolumeStore(std::string state_dir, std::string run_dir);

  /// Durable when it returns; after an error nothing is left. already_exists, or why the size, the
  /// backing or the data do not do. A backing volume:NAME@CHECKPOINT needs NAME's keeper running,
  /// and pins the checkpoint.
  Result<VolumeSummary> create(const VolumeCreateRequest& request, const VolumeJob& job = {});

  /// By name. Directories that are no volume are left out.
  Result<std::vector<VolumeSummary>> list() const;
  /// not_found.
  Result<VolumeSummary> summary(const std::string& name) const;

  /// Copies a closed volume's directory to the absolute path `to`, which must not be there
  /// (volume_travel.h). Durable when it returns; after an error nothing is left, and what a dead
  /// process left goes with the next call of create, remove, export or import.
  Result<ExportedVolume> export_directory(const std::string& name, const std::string& to,
                                          const VolumeJob& job = {});
  /// Takes in such a directory, from this host or another, under a name that is free: as a whole,
  /// or nothing is left. `precondition` with what is missing or not as it should be. Of a directory
  /// that is not copied, all that may be different after an error is that it is durable.
  Result<ImportedVolume> import_directory(const VolumeImportRequest& request,
                                          const VolumeJob& job = {});
  /// Whether the last to have it open has closed it: else its keeper died, or the machine did.
  Result<bool> is_closed(const std::string& name) const;

  /// With all its checkpoints. in_use while it is open somewhere, or while a volume has a
  /// checkpoint of it as backing. What was adopted keeps its bytes.
  Result<void> remove(const std::string& name);

 private:
  StateLayout state_;
  RunLayout run_;
};

/// What volume.json says; blocking. Somebody may have edited or removed it: then less is known.
VolumeSummary read_summary(const std::string& volume_path, const std::string& name);
/// Writes volume.json anew; blocking.
Result<void> write_summary(const std::string& volume_path, const VolumeSummary& summary);

/// Has volume.json say what the open volume says, if it does not yet. Failing that it stays as it
/// is, with a warning.
void refresh_summary(const StateLayout& state, const std::string& volume,
                     const disk::VolumeInfo& info);

}  // namespace berth::machine
