#include "container/process_bundle.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

#include "container/container_store.h"

namespace berth::container {
namespace {

using machine::Json;

constexpr std::uint32_t sandbox_user_first = 2'000'027'648;  // a multiple of sandbox_users
constexpr std::uint32_t sandboxes_max = (UINT32_MAX - sandbox_user_first) / sandbox_users;
constexpr std::uint64_t cpu_period_us = 100'000;  // the kernel's own default
constexpr std::uint64_t files_soft = 1024;
constexpr std::uint64_t files_hard = 524'288;  // where we may have as many: nobody can raise it
constexpr const char* agent_path = "/dev/.berth-agent";
constexpr int eperm = 1;
constexpr int enosys = 38;

// moby, profiles/seccomp/default_linux.go: CLONE_NEW*, which nobody here may ask for.
constexpr std::uint64_t clone_namespaces = 0x7E020000;

// What podman's profile allows for containers in containers, and Docker's does not.
constexpr std::array nested = {
    "add_key",    "clone",       "clone3", "fsconfig",      "fsmount",    "fsopen",
    "fspick",     "keyctl",      "mount",  "mount_setattr", "move_mount", "open_tree",
    "pivot_root", "request_key", "setns",  "umount",        "umount2",    "unshare"};

Json mount(const char* destination, const char* type, std::vector<std::string> options) {
  return {{"destination", destination},
          {"type", type},
          {"source", type},
          {"options", std::move(options)}};
}

Json mounts(const std::string& agent) {
  return Json::array(
      {mount("/proc", "proc", {"nosuid", "noexec", "nodev"}),
       mount("/dev", "tmpfs", {"nosuid", "strictatime", "mode=755", "size=65536k"}),
       mount("/dev/pts", "devpts",
             {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}),
       mount("/dev/shm", "tmpfs", {"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}),
       mount("/dev/mqueue", "mqueue", {"nosuid", "noexec", "nodev"}),
       mount("/run", "tmpfs", {"nosuid", "nodev", "mode=755"}),
       mount("/sys", "sysfs", {"nosuid", "noexec", "nodev", "ro"}),
       {{"destination", agent_path},
        {"type", "bind"},
        {"source", agent},
        {"options", {"bind", "ro", "nosuid", "nodev"}}}});
}

Json resources(const BundleSpecification& wanted) {
  const auto quota = static_cast<std::uint64_t>(std::llround(wanted.cpus * double{cpu_period_us}));
  return {{"devices", Json::array({{{"allow", false}, {"access", "rwm"}}})},
          {"memory", {{"limit", wanted.memory}}},
          {"cpu", {{"quota", quota}, {"period", cpu_period_us}}},
          {"pids", {{"limit", sandbox_processes_max}}}};
}

Json process(std::uint64_t files_max) {
  const std::uint64_t hard = std::min(files_hard, files_max);
  const std::vector<std::string>& all = sandbox_capabilities();
  return {
      {"terminal", false},
      {"user", {{"uid", 0}, {"gid", 0}}},
      {"args", {agent_path, "--in-container"}},
      {"env", {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
      {"cwd", "/"},
      {"noNewPrivileges", true},
      {"oomScoreAdj", 0},
      {"rlimits",
       Json::array(
           {{{"type", "RLIMIT_NOFILE"}, {"soft", std::min(files_soft, hard)}, {"hard", hard}}})},
      {"capabilities", {{"bounding", all}, {"effective", all}, {"permitted", all}}}};
}

Json namespaces() {
  Json list = Json::array();
  for (const char* type : {"pid", "network", "ipc", "uts", "mount", "cgroup", "user"})
    list.push_back({{"type", type}});
  return list;
}

/// Of `includes` or `excludes`: a list, empty where it is not there.
Json list_in(const Json& rule, const char* set, const char* name) {
  const auto found = rule.find(set);
  if (found == rule.end() || !found->is_object()) return Json::array();
  const Json list = found->value(name, Json::array());
  return list.is_array() ? list : Json::array();
}

bool is_ours(const Json& capability) {
  return capability.is_string() &&
         std::ranges::binary_search(sandbox_capabilities(), capability.get<std::string>());
}

/// containers-common, pkg/seccomp/types.go, Filter.
bool applies(const Json& rule) {
  const Json architectures = list_in(rule, "includes", "arches");
  if (!architectures.empty() && std::ranges::find(architectures, "amd64") == architectures.end())
    return false;
  const Json excluded = list_in(rule, "excludes", "arches");
  if (std::ranges::find(excluded, "amd64") != excluded.end()) return false;
  return std::ranges::all_of(list_in(rule, "includes", "caps"), is_ours) &&
         std::ranges::none_of(list_in(rule, "excludes", "caps"), is_ours);
}

/// As runtime-spec has it; nothing where no name is left.
Json oci_rule(const Json& rule) {
  Json names = Json::array();
  for (const Json& name : rule["names"])
    if (std::ranges::find(nested, name) == nested.end()) names.push_back(name);
  if (names.empty()) return {};
  Json made = {{"names", names}, {"action", rule["action"]}};
  if (const auto args = rule.find("args"); args != rule.end() && args->is_array() && !args->empty())
    made["args"] = *args;
  if (const auto number = rule.find("errnoRet"); number != rule.end()) made["errnoRet"] = *number;
  return made;
}

/// Docker's: no new namespaces, and a libc that gets ENOSYS for clone3(2) asks for clone(2), whose
/// flags can be seen.
void add_rules_for_nested(Json& rules) {
  Json refused = Json::array();
  for (const std::string_view name : nested)
    if (name != "clone" && name != "clone3") refused.push_back(name);
  rules.push_back({{"names", refused}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", eperm}});
  rules.push_back({{"names", {"clone3"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", enosys}});
  rules.push_back({{"names", {"clone"}},
                   {"action", "SCMP_ACT_ALLOW"},
                   {"args", Json::array({{{"index", 0},
                                          {"value", clone_namespaces},
                                          {"valueTwo", 0},
                                          {"op", "SCMP_CMP_MASKED_EQ"}}})}});
}

bool is_rule(const Json& rule) {
  if (!rule.is_object() || !rule.contains("names") || !rule["names"].is_array()) return false;
  const auto action = rule.find("action");
  return action != rule.end() && action->is_string() &&
         std::ranges::all_of(rule["names"], [](const Json& name) { return name.is_string(); });
}

}  // namespace

const std::vector<std::string>& sandbox_capabilities() {
  // moby, oci/caps/defaults.go.
  static const std::vector<std::string> all = {
      "CAP_AUDIT_WRITE", "CAP_CHOWN",   "CAP_DAC_OVERRIDE",     "CAP_FOWNER",    "CAP_FSETID",
      "CAP_KILL",        "CAP_MKNOD",   "CAP_NET_BIND_SERVICE", "CAP_NET_RAW",   "CAP_SETFCAP",
      "CAP_SETGID",      "CAP_SETPCAP", "CAP_SETUID",           "CAP_SYS_CHROOT"};
  return all;
}

Result<std::uint32_t> first_sandbox_user(std::uint32_t container_uid) {
  const std::uint32_t number = container_uid - container_uid_first;
  if (container_uid < container_uid_first || number >= sandboxes_max) {
    return failure(ErrorKind::limit,
                   fmt::format("there are no users left for it: {} containers in the host's kernel "
                               "can have some",
                               sandboxes_max));
  }
  return sandbox_user_first + number * sandbox_users;
}

Json bundle_config(const BundleSpecification& wanted, Json seccomp) {
  const Json users =
      Json::array({{{"containerID", 0}, {"hostID", wanted.first_user}, {"size", sandbox_users}}});
  return {{"ociVersion", "1.0.2"},
          {"process", process(wanted.files_max)},
          {"root", {{"path", wanted.root}, {"readonly", false}}},
          {"hostname", wanted.hostname},
          {"mounts", mounts(wanted.agent)},
          {"linux",
           {{"namespaces", namespaces()},
            {"uidMappings", users},
            {"gidMappings", users},
            {"cgroupsPath", wanted.control_group},
            {"resources", resources(wanted)},
            {"seccomp", std::move(seccomp)},
            // moby, oci/defaults.go.
            {"maskedPaths",
             {"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
              "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
              "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}},
            {"readonlyPaths",
             {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}}}}};
}

Result<Json> seccomp_filter(std::string_view profile) {
  const Json json = TRY(machine::parse_json(profile));
  const auto wrong = [] {
    return failure(ErrorKind::corrupt,
                   fmt::format("'{}' is no profile of system calls", seccomp_profile_path));
  };
  if (!json.is_object() || json.value("defaultAction", Json()) != "SCMP_ACT_ERRNO" ||
      !json.contains("syscalls") || !json["syscalls"].is_array())
    return wrong();
  Json rules = Json::array();
  for (const Json& rule : json["syscalls"]) {
    if (!is_rule(rule)) return wrong();
    if (!applies(rule)) continue;
    if (Json made = oci_rule(rule); !made.is_null()) rules.push_back(std::move(made));
  }
  add_rules_for_nested(rules);
  return Json{{"defaultAction", "SCMP_ACT_ERRNO"},
              {"defaultErrnoRet", enosys},
              {"architectures", {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"}},
              {"syscalls", std::move(rules)}};
}

}  // namespace berth::container
