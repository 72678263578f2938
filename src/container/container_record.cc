#include "container/container_record.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>
#include <utility>

#include <arpa/inet.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/units.h"
#include "container/record_members.h"
#include "machine/layout.h"

namespace berth::container {
namespace {

constexpr const char* record_format = "berth-container";
constexpr unsigned record_version = 1;
constexpr std::size_t hostname_max = 64;  // HOST_NAME_MAX
constexpr unsigned signal_max = 64;       // SIGRTMAX

Result<PublishedPort> decode_port(Members& members) {
  PublishedPort port{.host_address = "0.0.0.0"};
  TRY(members.take("host_address", port.host_address));
  TRY(members.take("host_port", port.host_port));
  TRY(members.take("guest_port", port.guest_port));
  return port;
}

Result<ContainerMount> decode_mount(Members& members) {
  ContainerMount mount;
  TRY(members.take("volume", mount.volume));
  TRY(members.take("path", mount.path));
  TRY(members.take("read_only", mount.read_only));
  return mount;
}

bool is_ip_address(const std::string& text) {
  std::array<unsigned char, sizeof(in6_addr)> address{};
  return ::inet_pton(AF_INET, text.c_str(), address.data()) == 1 ||
         ::inet_pton(AF_INET6, text.c_str(), address.data()) == 1;
}

/// Absolute, and each of its names says where it leads.
bool is_plain_path(std::string_view path) {
  if (!path.starts_with('/') || path.size() > text_max) return false;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string_view name = path.substr(at, end - at);
    if (name == "." || name == "..") return false;
    at = end + 1;
  }
  return true;
}

bool is_hostname(std::string_view name) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.';
  };
  return !name.empty() && name.size() <= hostname_max && name.front() != '-' &&
         name.front() != '.' && std::ranges::all_of(name, fits);
}

Result<void> check_command(const ContainerSpecification& container) {
  if (container.arguments.empty() || container.arguments.front().empty())
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("the image '{}' has no command, and none was given", container.image_name));
  std::size_t bytes = 0;
  for (const std::string& word : container.arguments) bytes += word.size() + 1;
  for (const std::string& variable : container.environment) {
    bytes += variable.size() + 1;
    const std::size_t name = variable.find('=');
    if (name == 0 || name == std::string::npos)
      return wrong("environment", fmt::format("NAME=value, found '{}'", variable));
  }
  if (container.arguments.size() > container_arguments_max ||
      container.environment.size() > container_environment_max ||
      bytes > container_words_bytes_max) {
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("the command and its environment are too long: up to {} words, {} "
                    "variables and {} bytes",
                    container_arguments_max, container_environment_max, container_words_bytes_max));
  }
  if (!container.working_directory.empty() && !container.working_directory.starts_with('/'))
    return wrong("working_directory", "an absolute path");
  TRY(signal_number(container.stop_signal));
  return {};
}

Result<void> check_resources(const ContainerSpecification& container) {
  if (!(container.cpus >= 0.01 && container.cpus <= container_cpus_max))
    return wrong("cpus", fmt::format("a number from 0.01 to {}", container_cpus_max));
  if (container.memory < container_memory_min || container.memory > container_memory_max ||
      container.memory % container_memory_multiple != 0) {
    return wrong("memory",
                 fmt::format("{} MiB to {} GiB, a multiple of {} MiB", container_memory_min >> 20,
                             container_memory_max >> 30, container_memory_multiple >> 20));
  }
  if (container.stop_timeout_s > container_stop_timeout_s_max)
    return wrong("stop_timeout_s", fmt::format("up to {}", container_stop_timeout_s_max));
  if (container.log_bytes < container_log_bytes_min)
    return wrong("log_bytes", fmt::format("at least {}", container_log_bytes_min));
  return {};
}

/// Zero is no time after which somebody is idle.
Result<void> check_park_after(const std::string& text) {
  if (text.empty() || text == park_never) return {};
  const auto after = parse_duration(text);
  if (after && after->count() > 0) return {};
  return wrong("park_after",
               fmt::format("never, or a duration such as 90s or 5m, found '{}'", text));
}

Result<void> check_ports(const std::vector<PublishedPort>& ports) {
  if (ports.size() > container_ports_max)
    return wrong("ports", fmt::format("up to {}", container_ports_max));
  std::set<std::pair<std::string, std::uint16_t>> taken;
  for (const PublishedPort& port : ports) {
    if (!is_ip_address(port.host_address))
      return wrong("ports", fmt::format("an IP address, found '{}'", port.host_address));
    if (port.guest_port == 0) return wrong("ports", "a port of the container from 1 to 65535");
    if (port.host_port != 0 && !taken.emplace(port.host_address, port.host_port).second) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("ports: {}:{} is there twice", port.host_address, port.host_port));
    }
  }
  return {};
}

Result<void> check_mounts(const ContainerSpecification& container) {
  if (container.mounts.size() > container_mounts_max)
    return wrong("mounts", fmt::format("up to {}", container_mounts_max));
  std::set<std::string> volumes;
  std::set<std::string> paths;
  if (!container.overlay.empty()) {
    TRY(machine::check_name("volume", container.overlay));
    volumes.insert(container.overlay);
  }
  for (const ContainerMount& mount : container.mounts) {
    TRY(machine::check_name("volume", mount.volume));
    if (!is_plain_path(mount.path) || mount.path == "/") {
      return wrong("mounts", fmt::format("an absolute path without . and .., other than /, found "
                                         "'{}'",
                                         mount.path));
    }
    if (!volumes.insert(mount.volume).second || !paths.insert(mount.path).second) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("mounts: '{}' at '{}': one of them is there twice", mount.volume,
                                 mount.path));
    }
  }
  return {};
}

Result<void> check_isolation(const ContainerSpecification& container) {
  if (container.isolation == ContainerSpecification::Isolation::machine) return {};
  if (!container.template_name.empty())
    return failure(ErrorKind::unsupported, "isolation: a clone has a microVM of its own");
  if (!container.has_volumes()) return {};
  return failure(ErrorKind::unsupported,
                 "isolation: only a container in a microVM can have volumes, which are its disks");
}

Result<ContainerRecord> decode_record(const Json& json) {
  Members members(json, "");
  TRY(members.check_object());
  ContainerRecord record;
  TRY(check_format(members, record_format, record_version));
  TRY(members.take("id", record.id));
  TRY(members.take("uid", record.uid));
  TRY(members.take("created_at", record.created_at));
  if (!json.contains("specification")) return wrong("specification", "an object");
  record.specification = TRY(decode_container(json["specification"]));
  return record;
}

Result<ContainerState> decode_state(const Json& json) {
  Members members(json, "");
  TRY(members.check_object());
  ContainerState state;
  TRY(members.take("running", state.running));
  TRY(members.take("ended", state.ended));
  TRY(members.take("started_at", state.started_at));
  TRY(members.take("finished_at", state.finished_at));
  TRY(members.take("exit_code", state.exit_code));
  TRY(members.take("exit_signal", state.exit_signal));
  TRY(members.take("error", state.error));
  return state;
}

}  // namespace

const char* to_string(ContainerSpecification::Network network) {
  return network == ContainerSpecification::Network::none ? "none" : "user";
}

const char* to_string(ContainerSpecification::Isolation isolation) {
  return isolation == ContainerSpecification::Isolation::machine ? "machine" : "process";
}

Result<void> check(const ContainerSpecification& container) {
  TRY(machine::check_name("container", container.name));
  if (container.name.size() > container_name_length_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the name of a container has at most {} characters; '{}' has {}",
                               container_name_length_max, container.name, container.name.size()));
  }
  if (!is_hostname(container.hostname))
    return wrong("hostname", fmt::format("letters, digits, - and ., up to {}", hostname_max));
  TRY(check_command(container));
  TRY(check_resources(container));
  TRY(check_park_after(container.park_after));
  TRY(check_ports(container.ports));
  TRY(check_mounts(container));
  TRY(check_isolation(container));
  if (container.template_name.empty()) return {};
  TRY(machine::check_name("template", container.template_name));
  if (!container.has_volumes()) return {};
  return failure(ErrorKind::invalid_argument, "a clone cannot have volumes: its template had none");
}

Json encode_ports(const std::vector<PublishedPort>& ports) {
  Json json = Json::array();
  for (const PublishedPort& port : ports) {
    json.push_back({{"host_address", port.host_address},
                    {"host_port", port.host_port},
                    {"guest_port", port.guest_port}});
  }
  return json;
}

Result<std::vector<PublishedPort>> decode_ports(const Json& json) {
  const Json object = {{"ports", json}};
  std::vector<PublishedPort> ports;
  TRY(Members(object, "").take("ports", ports, container_ports_max, decode_port));
  return ports;
}

Json encode(const ContainerSpecification& container) {
  Json mounts = Json::array();
  for (const ContainerMount& mount : container.mounts) {
    mounts.push_back(
        {{"volume", mount.volume}, {"path", mount.path}, {"read_only", mount.read_only}});
  }
  return {{"name", container.name},
          {"image", container.image},
          {"image_name", container.image_name},
          {"arguments", container.arguments},
          {"environment", container.environment},
          {"working_directory", container.working_directory},
          {"user", container.user},
          {"hostname", container.hostname},
          {"stop_signal", container.stop_signal},
          {"stop_timeout_s", container.stop_timeout_s},
          {"terminal", container.terminal},
          {"input", container.input},
          {"remove", container.remove},
          {"cpus", container.cpus},
          {"memory", container.memory},
          {"network", to_string(container.network)},
          {"isolation", to_string(container.isolation)},
          {"ports", encode_ports(container.ports)},
          {"template", container.template_name},
          {"overlay", container.overlay},
          {"mounts", std::move(mounts)},
          {"labels", container.labels},
          {"park_after", container.park_after},
          {"log_bytes", container.log_bytes}};
}

Result<ContainerSpecification> decode_container(const Json& json) {
  Members members(json, "");
  TRY(members.check_object());
  ContainerSpecification container;
  container.stop_signal = "SIGTERM";
  std::string network = to_string(container.network);
  TRY(members.take("name", container.name));
  TRY(members.take("image", container.image));
  TRY(members.take("image_name", container.image_name));
  TRY(members.take("arguments", container.arguments, container_arguments_max));
  TRY(members.take("environment", container.environment, container_environment_max));
  TRY(members.take("working_directory", container.working_directory));
  TRY(members.take("user", container.user));
  TRY(members.take("hostname", container.hostname));
  TRY(members.take("stop_signal", container.stop_signal));
  TRY(members.take("stop_timeout_s", container.stop_timeout_s));
  TRY(members.take("terminal", container.terminal));
  TRY(members.take("input", container.input));
  TRY(members.take("remove", container.remove));
  TRY(members.take("cpus", container.cpus));
  TRY(members.take("memory", container.memory));
  TRY(members.take("network", network));
  if (network != "none" && network != "user") return wrong("network", "none or user");
  container.network = network == "none" ? ContainerSpecification::Network::none
                                        : ContainerSpecification::Network::user;
  std::string isolation = "machine";
  TRY(members.take("isolation", isolation));
  if (isolation != "machine" && isolation != "process")
    return wrong("isolation", "machine or process");
  container.isolation = isolation == "machine" ? ContainerSpecification::Isolation::machine
                                               : ContainerSpecification::Isolation::process;
  TRY(members.take("ports", container.ports, container_ports_max, decode_port));
  TRY(members.take("template", container.template_name));
  TRY(members.take("overlay", container.overlay));
  TRY(members.take("mounts", container.mounts, container_mounts_max, decode_mount));
  TRY(members.take("labels", container.labels));
  TRY(members.take("park_after", container.park_after));
  TRY(members.take("log_bytes", container.log_bytes));
  TRY(members.check_all_known());
  return container;
}

Json encode(const ContainerRecord& record) {
  return {{"format", record_format},         {"version", record_version},
          {"id", record.id.to_string()},     {"uid", record.uid},
          {"created_at", record.created_at}, {"specification", encode(record.specification)}};
}

Result<ContainerRecord> decode_container_record(std::string_view text) {
  return as_document(decode_record(TRY(parse_document(text))));
}

Json encode(const ContainerState& state) {
  return {{"running", state.running},
          {"ended", state.ended},
          {"started_at", state.started_at},
          {"finished_at", state.finished_at},
          {"exit_code", state.exit_code},
          {"exit_signal", state.exit_signal},
          {"error", state.error}};
}

Result<ContainerState> decode_container_state(std::string_view text) {
  return as_document(decode_state(TRY(parse_document(text))));
}

Result<unsigned> signal_number(std::string_view text) {
  // signal(7), x86 and ARM.
  static constexpr auto names = std::to_array<std::pair<std::string_view, unsigned>>(
      {{"HUP", 1},     {"INT", 2},   {"QUIT", 3},   {"ILL", 4},   {"TRAP", 5},  {"ABRT", 6},
       {"BUS", 7},     {"FPE", 8},   {"KILL", 9},   {"USR1", 10}, {"SEGV", 11}, {"USR2", 12},
       {"PIPE", 13},   {"ALRM", 14}, {"TERM", 15},  {"CHLD", 17}, {"CONT", 18}, {"STOP", 19},
       {"TSTP", 20},   {"TTIN", 21}, {"TTOU", 22},  {"URG", 23},  {"XCPU", 24}, {"XFSZ", 25},
       {"VTALRM", 26}, {"PROF", 27}, {"WINCH", 28}, {"IO", 29},   {"PWR", 30},  {"SYS", 31}});
  std::string_view name = text;
  if (name.starts_with("SIG")) name.remove_prefix(3);
  for (const auto& [known, number] : names)
    if (name == known) return number;
  unsigned number = 0;
  const std::string_view digits = name.starts_with("RTMIN+") ? name.substr(6) : name;
  const auto [stop, code] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const unsigned base = name.starts_with("RTMIN+") ? 34 : 0;
  if (code == std::errc{} && stop == digits.data() + digits.size() && number + base >= 1 &&
      number <= signal_max - base)
    return number + base;
  return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no signal", text));
}

}  // namespace berth::container
