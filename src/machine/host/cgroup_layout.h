// Mounts, and how the host's control groups are laid out: v1, v2, or both. Pure; no I/O.
//
// Formats: proc_pid_mountinfo(5), cgroups(7).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace berth::machine {

/// A line of /proc/PID/mountinfo.
struct Mount {
  std::string root;  // the directory of the file system that is mounted
  std::string point;
  std::string type;
  std::string source;
  std::vector<std::string> options;        // of the mount: "ro", "noexec"
  std::vector<std::string> super_options;  // of the file system: "cpu", "huge=advise"
};
std::vector<Mount> parse_mountinfo(std::string_view text);

/// The mount that an absolute path without symbolic links lies in; null if there is none.
const Mount* mount_of(const std::vector<Mount>& mounts, std::string_view path);

/// The value of "name=value", or "".
std::string_view option_value(const std::vector<std::string>& options, std::string_view name);

struct CgroupLayout {
  enum class Version : std::uint8_t { none, v1, v2, hybrid };

  Version version = Version::none;
  /// This process's own cgroup in the v2 hierarchy, and where that is mounted; "" without one.
  std::string v2_directory;
  std::string v2_mount;
  /// Likewise for every v1 controller: "freezer" to "/sys/fs/cgroup/freezer/user".
  std::map<std::string, std::string> v1_directories;
  /// And for v1 hierarchies without controllers, which have a name: "systemd".
  std::vector<std::string> v1_named_directories;
};
std::string_view to_string(CgroupLayout::Version version);

/// `self_cgroup` is the text of /proc/self/cgroup.
CgroupLayout cgroup_layout(const std::vector<Mount>& mounts, std::string_view self_cgroup);

}  // namespace berth::machine
