// A tree of the guest's files as a tar, and back: what the children of `archive_read` and
// `archive_write` do. They block, and change who they are (directory, root): never call them in the
// agent itself.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace berth::agent {

/// Writes a pax tar of the file or directory to `output`. Names begin with its last component;
/// those of "/" with ".". Sockets, what vanishes meanwhile, and what is in file systems that the
/// kernel makes up (/proc, /sys) are not in it. `disconnected`: nobody reads it.
Result<void> pack(const std::string& path, int output);

/// Unpacks a tar from `input` into a directory that is there, and reads on to the input's end.
/// `invalid_argument`: a name that is absolute, has "..", or leads through a symbolic link;
/// `corrupt`: not a tar, or cut short. What came before that stays.
Result<void> unpack(const std::string& directory, std::uint64_t flags, int input);

}  // namespace berth::agent
