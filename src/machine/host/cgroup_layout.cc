#include "machine/host/cgroup_layout.h"

#include <algorithm>
#include <array>
#include <utility>

#include "machine/host/host_text.h"

namespace berth::machine {
namespace {

/// Mounts name blanks and backslashes as "\040": three octal digits.
std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto octal = [&text](std::size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<std::string> options_of(std::string_view text) {
  const auto parts = split(text, ",");
  return {parts.begin(), parts.end()};
}

bool lies_in(std::string_view path, std::string_view directory) {
  if (directory == "/") return true;
  return path.starts_with(directory) &&
         (path.size() == directory.size() || path[directory.size()] == '/');
}

/// Where a cgroup of /proc/self/cgroup is to be seen in the mount.
std::string cgroup_directory(const Mount& mount, std::string_view path) {
  if (lies_in(path, mount.root) && mount.root != "/") path.remove_prefix(mount.root.size());
  if (path == "/" || path.empty() || path.starts_with("/..")) return mount.point;
  return mount.point + std::string(path);
}

struct Membership {
  std::vector<std::string_view> controllers;
  std::string_view path;
};

/// "HIERARCHY:CONTROLLERS:PATH"; a path may have colons.
std::vector<Membership> parse_self_cgroup(std::string_view text) {
  std::vector<Membership> all;
  for (const std::string_view line : split(text, "\n")) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    all.push_back({.controllers = split(line.substr(first + 1, second - first - 1), ","),
                   .path = line.substr(second + 1)});
  }
  return all;
}

std::string_view path_of(const std::vector<Membership>& memberships, std::string_view controller) {
  for (const Membership& membership : memberships) {
    const bool found = controller.empty() ? membership.controllers.empty()
                                          : std::ranges::find(membership.controllers, controller) !=
                                                membership.controllers.end();
    if (found) return membership.path;
  }
  return "/";
}

constexpr std::array<std::string_view, 13> controllers_v1 = {
    "blkio",  "cpu",     "cpuacct",  "cpuset",     "devices", "freezer", "hugetlb",
    "memory", "net_cls", "net_prio", "perf_event", "pids",    "rdma"};

}  // namespace

std::vector<Mount> parse_mountinfo(std::string_view text) {
  std::vector<Mount> mounts;
  for (const std::string_view line : split(text, "\n")) {
    const auto words = split(line, " ");
    // Six fields, any number of optional ones, "-", and three more.
    const auto dash = std::ranges::find(words, "-");
    if (dash - words.begin() < 6 || words.end() - dash < 4) continue;
    mounts.push_back({.root = unescaped(words[3]),
                      .point = unescaped(words[4]),
                      .type = std::string(dash[1]),
                      .source = unescaped(dash[2]),
                      .options = options_of(words[5]),
                      .super_options = options_of(dash[3])});
  }
  return mounts;
}

const Mount* mount_of(const std::vector<Mount>& mounts, std::string_view path) {
  const Mount* best = nullptr;
  for (const Mount& mount : mounts) {
    // A later mount at the same point hides an earlier one.
    if (lies_in(path, mount.point) && (best == nullptr || mount.point.size() >= best->point.size()))
      best = &mount;
  }
  return best;
}

std::string_view option_value(const std::vector<std::string>& options, std::string_view name) {
  for (const std::string_view option : options) {
    if (option.size() > name.size() && option.starts_with(name) && option[name.size()] == '=')
      return option.substr(name.size() + 1);
  }
  return {};
}

std::string_view to_string(CgroupLayout::Version version) {
  switch (version) {
    case CgroupLayout::Version::none: return "none";
    case CgroupLayout::Version::v1: return "v1";
    case CgroupLayout::Version::v2: return "v2";
    case CgroupLayout::Version::hybrid: return "hybrid";
  }
  return "none";
}

CgroupLayout cgroup_layout(const std::vector<Mount>& mounts, std::string_view self_cgroup) {
  const auto memberships = parse_self_cgroup(self_cgroup);
  CgroupLayout layout;
  for (const Mount& mount : mounts) {
    if (mount.type == "cgroup2") {
      layout.v2_mount = mount.point;
      layout.v2_directory = cgroup_directory(mount, path_of(memberships, ""));
    }
    if (mount.type != "cgroup") continue;
    for (const std::string& option : mount.super_options) {
      if (option.starts_with("name=")) {
        layout.v1_named_directories.push_back(
            cgroup_directory(mount, path_of(memberships, option)));
      }
      if (std::ranges::find(controllers_v1, option) == controllers_v1.end()) continue;
      layout.v1_directories[option] = cgroup_directory(mount, path_of(memberships, option));
    }
  }
  using Version = CgroupLayout::Version;
  const bool v1 = !layout.v1_directories.empty();
  const bool v2 = !layout.v2_mount.empty();
  layout.version = v1 ? (v2 ? Version::hybrid : Version::v1) : (v2 ? Version::v2 : Version::none);
  return layout;
}

}  // namespace berth::machine
