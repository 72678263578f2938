// A nameless file in a directory, to try a file system with: gone when its descriptor is closed,
// whatever becomes of this process.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace berth::machine {

/// Open for reading and writing. With O_TMPFILE, or, where the file system has no such thing,
/// removed as soon as it is made.
Result<Fd> make_scratch_file(const std::string& directory);

/// In the state directory, or where it will be made.
Result<Fd> make_state_scratch_file(const std::string& state_dir);

}  // namespace berth::machine
