// Opening what volumes stand on (backing_specification.h), as files that are only read.
//
// A backing never changes while a volume uses it; nothing here checks that. An image of another
// format is read through a qemu-nbd of its own, which ends with the file; a checkpoint of another
// volume through that volume's keeper.
#pragma once

#include <functional>
#include <string>

#include "async/uring_loop.h"
#include "disk/volume.h"

namespace berth::machine {

struct BackingPlaces {
  /// Path of the NBD socket on which a volume's keeper serves its checkpoints; an error if whoever
  /// asks does not stand on that one.
  std::function<Result<std::string>(const std::string& volume, const std::string& checkpoint)>
      volume_socket;
  std::string socket_directory;  // where sockets to qemu-nbd may be made; it is there
};

/// The loop outlives the opener and the files. Errors: invalid_argument for what is no
/// specification, not_found, `precondition` where a format was not said and must be, `timed_out` if
/// a keeper or qemu-nbd does not come up.
disk::BackingOpener make_backing_opener(UringLoop& loop, BackingPlaces places);

/// Sockets in `directory` that an opener of a dead process has left. Only for a directory that one
/// process has.
void remove_stale_image_sockets(const std::string& directory);

}  // namespace berth::machine
