// The root of a container in the host's kernel, and how it gets there: its image, a writable layer
// in memory above it, and runc started where both are mounted.
//
// All is mounted in a mount namespace of its own, which nobody is in but runc and what that starts:
// with the last process of the container the kernel takes the mounts, the layer and the loop device
// away. So nothing of it is ever seen on the host, nor left there, whoever dies.
//
// Containers of one image share its loop device, and so what is cached of it. What the image's
// users are on the host is the container's alone: the image is mapped to them as it is mounted.
//
// Blocking, some ten milliseconds; any thread. Needs root.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace berth::container {

struct ProcessRoot {
  std::string image;      // path of an EROFS
  std::string directory;  // exists; the container's own, which its users can get through
  std::uint32_t first_user = 0;
  std::uint32_t users = 0;
  std::uint64_t layer_bytes = 0;  // that the writable layer may take

  /// Where its root is mounted, for those in the namespace.
  std::string root() const { return directory + "/root"; }
};

struct ProgramInRoot {
  std::vector<std::string> arguments;  // the first is its path
  std::string log_path;                // standard output and error are appended there
  std::vector<int> inherited;          // descriptors that become 3 and so on
};

/// Runs a program to its end where the root is mounted. It is ended with us. `unsupported` on a
/// kernel that cannot map an image's users (before Linux 5.19); `io_error` with what the program
/// ended with: its log has the rest.
Result<void> run_in_root(const ProcessRoot& root, const ProgramInRoot& program);

}  // namespace berth::container
