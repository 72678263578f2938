// The files that a QEMU needs about it while it runs: its own directory, and copies of what it
// reads, for the unprivileged user that it runs as. Blocking.
#pragma once

#include <string>

#include <sys/types.h>

#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::machine {

/// Empty, for that user alone; whatever was there goes. Its parents stay the caller's, and the
/// user has to be able to pass through them.
Result<void> make_qemu_directory(const std::string& directory, uid_t uid);

/// A copy that QEMU's user may read; in place of one that is there.
Result<void> copy_for_qemu(const std::string& from, const std::string& to, uid_t uid, gid_t gid);

/// Where QEMU's own copy of the library that is loaded into it lies for as long as it starts:
/// beside its memory object.
std::string preload_copy(const std::string& memory_file);

/// "7.2.22", of QMP's VersionInfo.
std::string qemu_version_text(const Json& info);

}  // namespace berth::machine
