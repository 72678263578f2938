// Volumes as directories that come and go: copied as a whole, and taken in where they have come to
// (DESIGN §5: "Everything that reference points need travels with this directory").
//
// A volume's directory may come from anybody. Nothing in it is followed out of it: a link, a socket
// or a device in it is refused, and so is what another name has too where it is not copied. Names
// that do not belong into a volume are left out of copies. The loop's thread waits: some calls
// block.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "async/uring_loop.h"
#include "base/result.h"
#include "disk/closed_volume.h"
#include "machine/job_observer.h"
#include "machine/layout.h"
#include "machine/volume_store.h"

namespace berth::machine {

struct VolumeCopyOptions {
  // Of a directory that is to arrive somewhere: looked at first, so that what cannot is not copied.
  // Without, the volume must have been closed, and be whole: the copy may arrive anywhere.
  std::optional<disk::Arrival> arrival;
  bool keep_modes = true;  // else files get the mode 0600, and directories 0700
};

struct CopiedVolume {
  Id128 id;
  std::uint64_t bytes = 0;  // in its files, without their holes
  std::string backing;      // "" for none
};

/// Copies the volume's directory `from` into the directory `to`, which is there and empty: its
/// files, with their holes and their times of modification; blocks are shared where the file system
/// can. Durable when it returns, but for the name of `to`. After an error or a cancel, `to` has
/// something in it.
///
/// The volume is locked meanwhile: `in_use` if it is open. `precondition` where its data lies
/// elsewhere (it was adopted), and as the options say; invalid_argument for what is no volume's
/// directory.
Task<Result<CopiedVolume>> copy_volume_directory(UringLoop& loop, std::string from, std::string to,
                                                 JobObserver& observer, VolumeCopyOptions options);

/// A volume that is about to be taken in.
struct ArrivingVolume {
  std::string name;                 // that it gets
  Id128 id;                         // before it is
  std::string backing;              // "" for none
  std::uint64_t backing_limit = 0;  // bytes of it that count
  bool needs_backing = false;       // something is still only there
};
struct ArrivedVolume {
  disk::Settled settled;
  VolumeSummary summary;  // of the volume as it is now
};

/// Takes in the volume in the directory `path`, where it is (disk::ClosedVolume::settle), and
/// writes its volume.json for the name `volume`. `accept` may refuse it before anything is changed.
/// Either it has arrived when it returns, or nothing has happened but that its files are durable;
/// it may be repeated.
Task<Result<ArrivedVolume>> import_volume_directory(
    UringLoop& loop, std::string path, std::string volume, disk::Arrival arrival,
    std::function<Result<void>(const ArrivingVolume&)> accept);

/// Whether what the volume stands on is here, as far as it is needed: an image at its path, outside
/// of the volumes of this host. `precondition` with what is missing; also for a checkpoint of
/// another volume, which does not travel with it, unless it has stood on that here before. NBD
/// servers are not asked. Blocking.
Result<void> check_backing_is_here(const StateLayout& state, const ArrivingVolume& volume);

}  // namespace berth::machine
