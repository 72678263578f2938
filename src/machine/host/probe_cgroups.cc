// probes.h: control groups. A child is really made, frozen and removed.

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/host/cgroup_layout.h"
#include "machine/host/host_text.h"
#include "machine/host/probes.h"

namespace berth::machine {
namespace {

CgroupLayout layout_of(const HostView& host) {
  return cgroup_layout(parse_mountinfo(host.read("/proc/self/mountinfo").value_or("")),
                       host.read("/proc/self/cgroup").value_or(""));
}

/// An empty cgroup below `parent`, for as long as it lives.
class ChildCgroup {
 public:
  explicit ChildCgroup(const std::string& parent) {
    static std::atomic<unsigned> made = 0;
    path_ = fmt::format("{}/berth-doctor-{}-{}", parent, ::getpid(), made++);
    if (::mkdir(path_.c_str(), 0755) != 0) error_ = errno;
  }
  ChildCgroup(const ChildCgroup&) = delete;
  ChildCgroup& operator=(const ChildCgroup&) = delete;
  ~ChildCgroup() {
    if (error_ == 0) ::rmdir(path_.c_str());
  }
  int error() const { return error_; }

  bool write(const char* name, std::string_view text) const {
    const Fd file(::open((path_ + '/' + name).c_str(), O_WRONLY | O_CLOEXEC));
    return file && ::write(file.get(), text.data(), text.size()) == std::ssize(text);
  }
  std::string read(const char* name) const {
    return read_text_file(path_ + '/' + name).value_or("");
  }

 private:
  std::string path_;
  int error_ = 0;
};

/// A cgroup without processes is frozen at once, so nothing waits here.
bool freezes_v2(const std::string& parent) {
  const ChildCgroup child(parent);
  if (child.error() != 0 || !child.write("cgroup.freeze", "1")) return false;
  const bool frozen = child.read("cgroup.events").contains("frozen 1");
  return child.write("cgroup.freeze", "0") && frozen;
}

bool freezes_v1(const std::string& parent) {
  const ChildCgroup child(parent);
  if (child.error() != 0 || !child.write("freezer.state", "FROZEN")) return false;
  const bool frozen = child.read("freezer.state").starts_with("FROZEN");
  return child.write("freezer.state", "THAWED") && frozen;
}

/// v2 names I/O "io", v1 "blkio".
std::vector<std::string> absent_controllers(const CgroupLayout& layout,
                                            const std::vector<std::string_view>& v2) {
  std::vector<std::string> absent;
  for (const auto& [name, name_v1] :
       {std::pair{"cpu", "cpu"}, {"memory", "memory"}, {"io", "blkio"}, {"pids", "pids"}}) {
    const bool there =
        std::ranges::find(v2, name) != v2.end() || layout.v1_directories.contains(name_v1);
    if (!there) absent.emplace_back(name);
  }
  return absent;
}

std::string described(const CgroupLayout& layout, const std::vector<std::string_view>& v2) {
  std::vector<std::string_view> v1;
  for (const auto& [name, directory] : layout.v1_directories) v1.push_back(name);
  std::string text(to_string(layout.version));
  if (!v1.empty()) text += fmt::format("; v1: {}", fmt::join(v1, " "));
  if (!layout.v2_mount.empty())
    text += v2.empty() ? "; v2 without controllers" : fmt::format("; v2: {}", fmt::join(v2, " "));
  return text;
}

struct Parent {
  std::string hierarchy;  // for people
  std::string directory;
};

/// Where a machine's cgroup would be made, in each hierarchy that counts.
std::vector<Parent> parents_of(const CgroupLayout& layout) {
  std::vector<Parent> parents;
  if (!layout.v2_directory.empty()) parents.push_back({"v2", layout.v2_directory});
  for (const char* controller : {"freezer", "cpu", "memory"}) {
    const auto found = layout.v1_directories.find(controller);
    if (found == layout.v1_directories.end()) continue;
    if (std::ranges::find(parents, found->second, &Parent::directory) == parents.end())
      parents.push_back({fmt::format("v1 {}", controller), found->second});
  }
  return parents;
}

constexpr const char* no_cgroups_remedy = "Mount cgroup2 at /sys/fs/cgroup";

}  // namespace

Finding probe_cgroups(const HostView& host) {
  const CgroupLayout layout = layout_of(host);
  constexpr const char* cost = "machines cannot be limited, nor their use be measured";
  if (layout.version == CgroupLayout::Version::none)
    return missing("none is mounted", cost, no_cgroups_remedy);
  const auto text =
      layout.v2_mount.empty() ? std::nullopt : host.read(layout.v2_mount + "/cgroup.controllers");
  const auto v2 = split(text ? std::string_view(*text) : std::string_view(), " \n");
  const auto absent = absent_controllers(layout, v2);
  if (absent.empty()) return found(described(layout, v2));
  return degraded(fmt::format("{}; absent: {}", described(layout, v2), fmt::join(absent, " ")),
                  fmt::format("no limit and no measure of machines' {}", fmt::join(absent, ", ")),
                  "Enable these controllers: kernel command line, or cgroup.subtree_control above "
                  "this cgroup");
}

Finding probe_cgroup_children(const HostView& host) {
  constexpr const char* cost = "machines have no cgroup of their own: no limits, no freezing";
  const auto parents = parents_of(layout_of(host));
  if (parents.empty()) return missing("no hierarchy is mounted", cost, no_cgroups_remedy);
  std::vector<std::string> made;
  std::vector<std::string> refused;
  for (const Parent& parent : parents) {
    const ChildCgroup child(host.path(parent.directory));
    if (child.error() == 0) {
      made.push_back(parent.hierarchy);
    } else {
      refused.push_back(fmt::format("{}: {}: {}", parent.hierarchy, parent.directory,
                                    std::strerror(child.error())));
    }
  }
  if (refused.empty()) return found(fmt::format("made and removed: {}", fmt::join(made, ", ")));
  const std::string detail = fmt::format("{}", fmt::join(refused, "; "));
  constexpr const char* remedy =
      "Run as root with /sys/fs/cgroup writable, or have the cgroup delegated (systemd: "
      "Delegate=yes)";
  return made.empty() ? missing(detail, cost, remedy) : degraded(detail, cost, remedy);
}

Finding probe_freezer(const HostView& host) {
  const CgroupLayout layout = layout_of(host);
  const auto v1 = layout.v1_directories.find("freezer");
  if (!layout.v2_directory.empty() && freezes_v2(host.path(layout.v2_directory)))
    return found("v2: an empty cgroup was frozen and thawed");
  if (v1 != layout.v1_directories.end() && freezes_v1(host.path(v1->second)))
    return found("v1: an empty cgroup was frozen and thawed");
  return missing("no cgroup could be frozen",
                 "containers cannot be stopped all at once for a checkpoint (planned)",
                 "See cgroup_children; v2 needs Linux 5.2, v1 the freezer hierarchy mounted");
}

}  // namespace berth::machine
