#include "machine/vm/control_group.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <fstream>
#include <iterator>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/host/cgroup_layout.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t period_us = 100'000;  // the kernel's own default
constexpr const char* no_memory_group =
    "this host has no memory control group that Berth may use: see `berth host doctor`";

std::string read_all(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Result<void> write_value(const std::string& path, const std::string& value) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file || ::write(file.get(), value.data(), value.size()) < 0)
    return errno_failure(errno, fmt::format("cannot write '{}' to '{}'", value, path));
  return {};
}

std::optional<std::uint64_t> number_in(const std::string& text) {
  std::uint64_t number = 0;
  const auto [stop, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc{}) return std::nullopt;
  return number;
}

/// Of memory.stat: lines of a name and a number; 0 where it is not there.
std::uint64_t stat_in(const std::string& text, std::string_view name) {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    if (line.starts_with(name) && line.size() > name.size() && line[name.size()] == ' ')
      return number_in(line.substr(name.size() + 1)).value_or(0);
    begin = end + 1;
  }
  return 0;
}

/// PARENT/berth/MACHINE, made; "" where that may not be.
std::string make_group(const std::string& parent, const std::string& machine) {
  if (parent.empty()) return {};
  const std::string berth = parent + "/berth";
  std::string group = fmt::format("{}/{}", berth, machine);
  for (const std::string& path : {berth, group}) {
    if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) return {};
  }
  return group;
}

/// Where this process is.
CgroupLayout own_layout() {
  return cgroup_layout(parse_mountinfo(read_all("/proc/self/mountinfo")),
                       read_all("/proc/self/cgroup"));
}

std::string v1_directory(const CgroupLayout& layout, const char* controller) {
  const auto found = layout.v1_directories.find(controller);
  return found == layout.v1_directories.end() ? std::string() : found->second;
}

}  // namespace

ControlGroup ControlGroup::open(const std::string& machine) {
  const CgroupLayout layout = own_layout();
  ControlGroup group;
  group.v2_ = make_group(layout.v2_directory, machine);
  group.cpu_ = make_group(v1_directory(layout, "cpu"), machine);
  group.memory_ = make_group(v1_directory(layout, "memory"), machine);
  group.freezer_ = make_group(v1_directory(layout, "freezer"), machine);
  group.name_ = machine;
  for (const auto& [controller, directory] : layout.v1_directories) {
    if (controller != "cpu" && controller != "memory" && controller != "freezer")
      group.others_.push_back(fmt::format("{}/berth/{}", directory, machine));
  }
  for (const std::string& directory : layout.v1_named_directories)
    group.others_.push_back(fmt::format("{}/berth/{}", directory, machine));
  group.is_v2_alone_ = layout.version == CgroupLayout::Version::v2;
  if (!group.v2_.empty() && group.is_v2_alone_) {
    // A parent that has processes of its own cannot pass controllers on: then there are no limits.
    for (const std::string& above : {layout.v2_directory, layout.v2_directory + "/berth"})
      (void)write_value(above + "/cgroup.subtree_control", "+cpu +memory");
  }
  return group;
}

void ControlGroup::expect_entry() {
  const CgroupLayout layout = own_layout();
  const std::string directory =
      layout.v2_directory.empty() ? v1_directory(layout, "memory") : layout.v2_directory;
  // Into the group that we are in.
  if (!directory.empty()) (void)write_value(directory + "/cgroup.procs", "0");
}

std::vector<std::string> ControlGroup::process_files() const {
  std::vector<std::string> files;
  for (const std::string* directory : {&v2_, &cpu_, &memory_, &freezer_})
    if (!directory->empty()) files.push_back(*directory + "/cgroup.procs");
  return files;
}

Result<void> ControlGroup::limit_cpus(double cpus) {
  const auto quota = static_cast<std::uint64_t>(std::llround(cpus * double{period_us}));
  if (!cpu_.empty()) {
    TRY(write_value(cpu_ + "/cpu.cfs_period_us", fmt::format("{}", period_us)));
    return write_value(cpu_ + "/cpu.cfs_quota_us", cpus > 0 ? fmt::format("{}", quota) : "-1");
  }
  if (!v2_.empty() && ::access((v2_ + "/cpu.max").c_str(), W_OK) == 0) {
    return write_value(v2_ + "/cpu.max", cpus > 0 ? fmt::format("{} {}", quota, period_us) : "max");
  }
  if (cpus <= 0) return {};
  return failure(ErrorKind::unsupported,
                 "this host has no cpu control group that Berth may use: see `berth host doctor`");
}

Result<void> ControlGroup::limit_memory(std::uint64_t bytes) {
  if (!memory_.empty()) {
    return write_value(memory_ + "/memory.limit_in_bytes",
                       bytes > 0 ? fmt::format("{}", bytes) : "-1");
  }
  if (!v2_.empty() && ::access((v2_ + "/memory.max").c_str(), W_OK) == 0)
    return write_value(v2_ + "/memory.max", bytes > 0 ? fmt::format("{}", bytes) : "max");
  if (bytes == 0) return {};
  return failure(ErrorKind::unsupported, no_memory_group);
}

ControlGroupUsage ControlGroup::usage() const {
  ControlGroupUsage usage;
  if (!memory_.empty()) {
    usage.memory_bytes = number_in(read_all(memory_ + "/memory.usage_in_bytes"));
  } else if (!v2_.empty()) {
    usage.memory_bytes = number_in(read_all(v2_ + "/memory.current"));
  }
  if (!v2_.empty()) {
    const std::string text = read_all(v2_ + "/cpu.stat");
    constexpr std::string_view key = "usage_usec ";
    const std::size_t at = text.find(key);
    if (at != std::string::npos) usage.cpu_us = number_in(text.substr(at + key.size()));
  }
  return usage;
}

Result<ControlGroupMemory> ControlGroup::memory() const {
  const std::string& directory = memory_.empty() ? v2_ : memory_;
  const std::string text = directory.empty() ? "" : read_all(directory + "/memory.stat");
  if (text.empty()) return failure(ErrorKind::unsupported, no_memory_group);
  if (!memory_.empty()) {
    return ControlGroupMemory{.resident = stat_in(text, "total_rss") + stat_in(text, "total_shmem"),
                              .swapped = stat_in(text, "total_swap")};
  }
  return ControlGroupMemory{
      .resident = stat_in(text, "anon") + stat_in(text, "shmem"),
      .swapped = number_in(read_all(directory + "/memory.swap.current")).value_or(0)};
}

/// Linux, Documentation/admin-guide/cgroup-v1/memory.rst, "force_empty", which goes on until
/// nothing more comes; cgroup-v2.rst, "memory.reclaim", which says EAGAIN where that is less.
Result<void> ControlGroup::reclaim() const {
  if (!memory_.empty()) return write_value(memory_ + "/memory.force_empty", "0");
  const std::string path = v2_ + "/memory.reclaim";
  if (v2_.empty() || ::access(path.c_str(), W_OK) != 0)
    return failure(ErrorKind::unsupported, no_memory_group);
  const std::uint64_t all = number_in(read_all(v2_ + "/memory.current")).value_or(0);
  auto written = write_value(path, fmt::format("{}", all));
  if (!written && written.error().errno_value() == EAGAIN) return {};
  return written;
}

std::string ControlGroup::runtime_path() const {
  constexpr std::string_view mount = "/sys/fs/cgroup";  // where runtimes look for it
  if (is_v2_alone_ && v2_.starts_with(mount)) return v2_.substr(mount.size());
  return fmt::format("berth/{}", name_);
}

void ControlGroup::kill() const {
  for (const std::string* directory : {&v2_, &cpu_, &memory_, &freezer_}) {
    std::ifstream members(*directory + "/cgroup.procs");
    for (pid_t pid = 0; members >> pid;)
      if (pid > 1) ::kill(pid, SIGKILL);
  }
}

bool ControlGroup::remove() {
  bool gone = true;
  // Each once: the next one of that name may be making it again.
  std::erase_if(others_, [](const std::string& directory) {
    if (::rmdir(directory.c_str()) != 0 && errno == EBUSY) return false;
    ::rmdir(directory.substr(0, directory.rfind('/')).c_str());
    return true;
  });
  gone = others_.empty();
  for (std::string* directory : {&v2_, &cpu_, &memory_, &freezer_}) {
    if (directory->empty()) continue;
    if (::rmdir(directory->c_str()) != 0 && errno == EBUSY) {
      gone = false;
      continue;
    }
    ::rmdir(directory->substr(0, directory->rfind('/')).c_str());  // where it was the last one
    directory->clear();
  }
  return gone;
}

}  // namespace berth::machine
