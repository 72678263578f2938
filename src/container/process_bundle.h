// What a container in the host's kernel may do and see: the config.json that runc makes it of.
// Pure: no I/O.
//
// Namespaces of its own, users among them: its root is nobody's on the host. Docker's capabilities
// and masked paths, no new privileges, and the filter of system calls that podman's containers
// have, without what only containers in containers need.
//
// Formats: OCI runtime-spec 1.0.2, config.md and config-linux.md; seccomp.json of
// containers-common.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::container {

/// The file that Debian's golang-github-containers-common has, which skopeo comes with.
constexpr const char* seccomp_profile_path = "/usr/share/containers/seccomp.json";
constexpr std::uint32_t sandbox_users = 65'536;        // ids that a container has
constexpr std::uint64_t sandbox_processes_max = 2048;  // and threads, as podman has it
/// Descriptors that its agent begins with: where it listens, and what ends when it does.
constexpr int agent_listener_fd = 3;

/// The first of the host's ids that are the container's: a range for each uid that containers are
/// given. `limit` for one that has none.
Result<std::uint32_t> first_sandbox_user(std::uint32_t container_uid);

struct BundleSpecification {
  std::string hostname;
  std::string root;   // path of its root file system
  std::string agent;  // path of the program that is its PID 1
  std::uint32_t first_user = 0;
  double cpus = 1;              // of CPU time
  std::uint64_t memory = 0;     // bytes
  std::uint64_t files_max = 0;  // that a process of ours may have open
  std::string control_group;    // as runc has it: relative to ours, or absolute
};

/// `seccomp`: of seccomp_filter().
machine::Json bundle_config(const BundleSpecification& specification, machine::Json seccomp);

/// The filter of a profile for what such a container may do, on this architecture, x86-64.
/// `corrupt` for what is none.
Result<machine::Json> seccomp_filter(std::string_view profile);

/// What its root may do at most; sorted.
const std::vector<std::string>& sandbox_capabilities();

}  // namespace berth::container
