#include "machine/vm/specification_rules.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include <arpa/inet.h>

#include <fmt/format.h>

#include "base/units.h"
#include "disk/types.h"
#include "machine/layout.h"

namespace berth::machine {
namespace {

constexpr std::size_t disk_name_length_max = 16;  // virtio-blk shows 20 bytes of a serial number
constexpr std::size_t interface_name_length_max = 15;  // IFNAMSIZ, without its terminating zero
constexpr std::size_t cpu_model_length_max = 64;

bool is_lower_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }

bool is_disk_name(std::string_view name) {
  return !name.empty() && name.size() <= disk_name_length_max && name.front() != '-' &&
         std::ranges::all_of(name, [](char c) { return is_lower_or_digit(c) || c == '-'; });
}

/// pc-q35-7.2, pc-q35-4.0.1. "q35" alone is another machine with each QEMU.
bool is_versioned_q35(std::string_view type) {
  constexpr std::string_view prefix = "pc-q35-";
  if (!type.starts_with(prefix) || type.size() > prefix.size() + 16) return false;
  type.remove_prefix(prefix.size());
  bool after_digit = false;
  std::size_t dots = 0;
  for (const char c : type) {
    if (!is_digit(c) && (c != '.' || !after_digit)) return false;
    after_digit = is_digit(c);
    if (c == '.') ++dots;
  }
  return after_digit && dots >= 1;
}

bool is_cpu_model(std::string_view model) {
  if (model == "max" || model == "base") return false;  // other CPUs with each QEMU
  return !model.empty() && model.size() <= cpu_model_length_max &&
         std::ranges::all_of(model, [](char c) {
           return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
                  c == '.';
         });
}

bool is_interface_name(std::string_view name) {
  return !name.empty() && name.size() <= interface_name_length_max && name != "." && name != ".." &&
         std::ranges::all_of(name, [](char c) {
           return c > ' ' && c < 0x7f && c != '/' && c != ':' && c != ',' && c != '%';
         });
}

/// Canonical, and of one station: not a group's, not 0.
bool is_mac(std::string_view mac) {
  if (mac.size() != 17) return false;
  for (std::size_t i = 0; i < mac.size(); ++i)
    if (i % 3 == 2 ? mac[i] != ':' : !is_hex(mac[i])) return false;
  const char low_nibble = mac[1];
  const bool is_group = (low_nibble <= '9' ? low_nibble - '0' : low_nibble - 'a' + 10) % 2 == 1;
  return !is_group && mac != "00:00:00:00:00:00";
}

bool is_canonical_ipv4(const std::string& address) {
  in_addr parsed{};
  char text[INET_ADDRSTRLEN];
  return address.size() < sizeof text && ::inet_pton(AF_INET, address.c_str(), &parsed) == 1 &&
         ::inet_ntop(AF_INET, &parsed, text, sizeof text) != nullptr && address == text;
}

/// Collects the first mistake; what is checked after it does not matter any more.
class Rules {
 public:
  explicit Rules(const MachineSpecification& specification) : machine_(specification) {}

  std::optional<Misfit> run() {
    check_machine();
    check_kernel();
    check_disks();
    check_cdroms();
    check_networks();
    check_cloud_init();
    check_limits();
    check_length();
    return std::move(misfit_);
  }

 private:
  void refuse(std::string place, std::string message) {
    if (!misfit_) misfit_ = Misfit{std::move(place), std::move(message)};
  }
  void require(bool holds, std::string_view place, std::string_view expected,
               std::string_view found) {
    if (!holds) refuse(std::string(place), fmt::format("expected {}, found {}", expected, found));
  }
  void check_text(std::string_view place, std::string_view text, std::size_t length_max) {
    if (text.contains('\0'))
      refuse(std::string(place), "expected a text without a zero byte, found one");
    require(text.size() <= length_max, place, fmt::format("at most {} bytes", length_max),
            fmt::format("{}", text.size()));
  }
  void check_path(std::string_view place, std::string_view path) {
    require(path.starts_with('/'), place, "an absolute path", describe_text(path));
    check_text(place, path, machine_path_length_max);
  }

  void check_name(std::string_view place, std::string_view name) {
    require(is_valid_name(name), place,
            fmt::format("up to {} letters, digits, '.', '_' and '-', beginning with a letter or a "
                        "digit",
                        volume_name_length_max),
            describe_text(name));
  }

  void check_machine() {
    check_name("/name", machine_.name);
    require(machine_.cpus >= 1 && machine_.cpus <= machine_cpus_max, "/cpus",
            fmt::format("1 to {}", machine_cpus_max), fmt::format("{}", machine_.cpus));
    const std::string memory = format_size(machine_.memory);
    require(
        machine_.memory >= machine_memory_min && machine_.memory <= machine_memory_max, "/memory",
        fmt::format("{} to {}", format_size(machine_memory_min), format_size(machine_memory_max)),
        memory);
    require(machine_.memory % machine_memory_multiple == 0, "/memory",
            fmt::format("a multiple of {}", format_size(machine_memory_multiple)),
            fmt::format("{} bytes", machine_.memory));
    require(machine_.machine_type.empty() || is_versioned_q35(machine_.machine_type), "/machine",
            "a versioned q35 such as \"pc-q35-7.2\"", describe_text(machine_.machine_type));
    require(machine_.cpu_model.empty() || is_cpu_model(machine_.cpu_model), "/cpu",
            "one of QEMU's named CPU models such as \"Westmere-v1\", or \"host\"",
            describe_text(machine_.cpu_model));
    require(machine_.stop_timeout_s >= 1 && machine_.stop_timeout_s <= machine_stop_timeout_s_max,
            "/stop_timeout", fmt::format("1 to {} seconds", machine_stop_timeout_s_max),
            fmt::format("{}", machine_.stop_timeout_s));
  }

  void check_kernel() {
    const KernelSpecification& kernel = machine_.kernel;
    if (kernel.image.empty()) {
      if (!kernel.initrd.empty()) refuse("/kernel/initrd", "an initrd needs a kernel: set image");
      if (!kernel.command_line.empty())
        refuse("/kernel/command_line", "a command line needs a kernel: set image");
      return;
    }
    check_path("/kernel/image", kernel.image);
    if (!kernel.initrd.empty()) check_path("/kernel/initrd", kernel.initrd);
    check_text("/kernel/command_line", kernel.command_line, machine_command_line_length_max);
  }

  void check_disks() {
    require(machine_.disks.size() <= machine_disks_max, "/disk",
            fmt::format("at most {} disks", machine_disks_max),
            fmt::format("{}", machine_.disks.size()));
    std::set<std::string_view> names;
    std::set<std::string_view> volumes;
    for (std::size_t i = 0; i < machine_.disks.size(); ++i) {
      const DiskSpecification& disk = machine_.disks[i];
      const std::string place = fmt::format("/disk/{}", i);
      require(is_disk_name(disk.name), place + "/name",
              fmt::format("up to {} lower-case letters, digits and '-', beginning with a letter or "
                          "a digit",
                          disk_name_length_max),
              describe_text(disk.name));
      if (!names.insert(disk.name).second)
        refuse(place + "/name", fmt::format("two disks have the name '{}'", disk.name));
      if (!disk.volume.empty() && !volumes.insert(disk.volume).second)
        refuse(place + "/volume",
               fmt::format("two disks are the volume {}", describe_text(disk.volume)));
      if (disk.volume.empty())
        check_own_disk(disk, place);
      else
        check_volume_disk(disk, place);
    }
  }

  void check_own_disk(const DiskSpecification& disk, const std::string& place) {
    if (disk.size == 0 && disk.image.empty())
      refuse(place, "a disk needs an image, a size (for an empty one) or a volume");
    require(disk.size % 512 == 0, place + "/size", "a multiple of 512",
            fmt::format("{} bytes", disk.size));
    require(disk.size <= disk::volume_size_max, place + "/size",
            fmt::format("at most {}", format_size(disk::volume_size_max)), format_size(disk.size));
    require(disk.block_size == 0 ||
                (std::has_single_bit(disk.block_size) && disk.block_size >= disk::block_size_min &&
                 disk.block_size <= disk::block_size_max),
            place + "/block_size",
            fmt::format("a power of two from {} to {}", format_size(disk::block_size_min),
                        format_size(disk::block_size_max)),
            fmt::format("{} bytes", disk.block_size));
    if (!disk.image.empty())
      check_path(place + "/image", disk.image);
    else if (disk.over_image)
      refuse(place + "/over_image", "there is no image to be over: set image");
  }

  void check_volume_disk(const DiskSpecification& disk, const std::string& place) {
    check_name(place + "/volume", disk.volume);
    constexpr std::string_view reason = "a disk that is a volume has it already: leave one out";
    if (!disk.image.empty()) refuse(place + "/image", std::string(reason));
    if (disk.size != 0) refuse(place + "/size", std::string(reason));
    if (disk.block_size != 0) refuse(place + "/block_size", std::string(reason));
    if (disk.over_image) refuse(place + "/over_image", std::string(reason));
  }

  void check_cdroms() {
    require(machine_.cdroms.size() <= machine_cdroms_max, "/cdrom",
            fmt::format("at most {} CD drives", machine_cdroms_max),
            fmt::format("{}", machine_.cdroms.size()));
    for (std::size_t i = 0; i < machine_.cdroms.size(); ++i)
      check_path(fmt::format("/cdrom/{}/image", i), machine_.cdroms[i].image);
  }

  void check_networks() {
    require(machine_.networks.size() <= machine_networks_max, "/network",
            fmt::format("at most {} networks", machine_networks_max),
            fmt::format("{}", machine_.networks.size()));
    std::set<std::string_view> macs;
    std::set<std::string_view> taps;
    for (std::size_t i = 0; i < machine_.networks.size(); ++i) {
      const NetworkSpecification& network = machine_.networks[i];
      const std::string place = fmt::format("/network/{}", i);
      if (!network.mac.empty()) {
        require(is_mac(network.mac), place + "/mac",
                "the address of one station such as \"52:54:00:12:34:56\"",
                describe_text(network.mac));
        if (!macs.insert(network.mac).second)
          refuse(place + "/mac", fmt::format("two networks have the address {}", network.mac));
      }
      if (network.mode == NetworkSpecification::Mode::tap) {
        require(is_interface_name(network.tap), place + "/tap",
                "the name of a tap interface of the host", describe_text(network.tap));
        if (!taps.insert(network.tap).second)
          refuse(place + "/tap", fmt::format("two networks use {}", describe_text(network.tap)));
        if (!network.forwards.empty())
          refuse(place + "/forward", "ports are forwarded in mode \"user\" only");
      } else if (!network.tap.empty()) {
        refuse(place + "/tap", "a tap interface is for mode \"tap\"");
      }
      check_forwards(network, place + "/forward");
    }
  }

  void check_forwards(const NetworkSpecification& network, const std::string& place) {
    require(network.forwards.size() <= machine_forwards_max, place,
            fmt::format("at most {} forwards", machine_forwards_max),
            fmt::format("{}", network.forwards.size()));
    for (std::size_t i = 0; i < network.forwards.size(); ++i) {
      const PortForward& forward = network.forwards[i];
      const std::string here = fmt::format("{}/{}", place, i);
      require(is_canonical_ipv4(forward.host_address), here, "a numeric IPv4 address of the host",
              describe_text(forward.host_address));
      require(forward.host_port != 0 && forward.guest_port != 0, here, "ports from 1 to 65535",
              "0");
      auto& taken = taken_ports_[{forward.protocol, forward.host_port}];
      const bool everywhere = forward.host_address == "0.0.0.0";
      if (taken.contains(forward.host_address) || taken.contains("0.0.0.0") ||
          (everywhere && !taken.empty())) {
        refuse(here, fmt::format("another forward has {} port {} of the host already",
                                 forward.protocol == PortForward::Protocol::tcp ? "TCP" : "UDP",
                                 forward.host_port));
      }
      taken.insert(forward.host_address);
    }
  }

  void check_cloud_init() {
    if (!machine_.cloud_init) return;
    const CloudInitSpecification& cloud_init = *machine_.cloud_init;
    check_text("/cloud_init/user_data", cloud_init.user_data, machine_json_bytes_max);
    check_text("/cloud_init/meta_data", cloud_init.meta_data, machine_json_bytes_max);
    check_text("/cloud_init/network_config", cloud_init.network_config, machine_json_bytes_max);
  }

  void check_limits() {
    const LimitSpecification& limits = machine_.limits;
    require(
        limits.cpus == 0 || (std::isfinite(limits.cpus) && limits.cpus >= machine_limit_cpus_min &&
                             limits.cpus <= machine_limit_cpus_max),
        "/limits/cpus",
        fmt::format("{} to {}, or 0 for no limit", machine_limit_cpus_min, machine_limit_cpus_max),
        fmt::format("{}", limits.cpus));
    require(limits.memory == 0 ||
                (limits.memory >= machine_limit_memory_min && limits.memory <= machine_memory_max),
            "/limits/memory",
            fmt::format("{} to {}, or 0 for no limit", format_size(machine_limit_memory_min),
                        format_size(machine_memory_max)),
            format_size(limits.memory));
  }

  /// Only lengths that have been found to be bounded come here.
  void check_length() {
    if (misfit_) return;
    const std::size_t length = format_json(encode(machine_)).size();
    require(length <= machine_json_bytes_max, "",
            fmt::format("a machine that is described in {}", format_size(machine_json_bytes_max)),
            fmt::format("{}: shorten its texts, cloud_init's to begin with", format_size(length)));
  }

  const MachineSpecification& machine_;
  std::optional<Misfit> misfit_;
  // (protocol, port): the addresses.
  std::map<std::tuple<PortForward::Protocol, std::uint16_t>, std::set<std::string>> taken_ports_;
};

std::optional<std::uint16_t> parse_port(std::string_view text) {
  std::uint16_t port = 0;
  const char* end = text.data() + text.size();
  const auto [stop, code] = std::from_chars(text.data(), end, port);
  if (code != std::errc{} || stop != end || port == 0) return std::nullopt;
  return port;
}

}  // namespace

Result<void> check_disk_name(std::string_view name) {
  if (is_disk_name(name)) return {};
  return failure(
      ErrorKind::invalid_argument,
      fmt::format("{} cannot be the name of a machine's disk: use up to {} lower-case letters, "
                  "digits and '-'",
                  describe_text(name), disk_name_length_max));
}

std::optional<PortForward> parse_forward(std::string_view text) {
  PortForward forward;
  if (text.starts_with("tcp:") || text.starts_with("udp:")) {
    if (text.front() == 'u') forward.protocol = PortForward::Protocol::udp;
    text.remove_prefix(4);
  }
  const std::size_t last = text.rfind(':');
  if (last == std::string_view::npos) return std::nullopt;
  const auto guest_port = parse_port(text.substr(last + 1));
  std::string_view host = text.substr(0, last);
  if (const std::size_t colon = host.rfind(':'); colon != std::string_view::npos) {
    forward.host_address = host.substr(0, colon);
    if (!is_canonical_ipv4(forward.host_address)) return std::nullopt;
    host.remove_prefix(colon + 1);
  }
  const auto host_port = parse_port(host);
  if (!guest_port || !host_port) return std::nullopt;
  forward.host_port = *host_port;
  forward.guest_port = *guest_port;
  return forward;
}

std::string format_forward(const PortForward& forward) {
  return fmt::format("{}:{}:{}:{}", forward.protocol == PortForward::Protocol::tcp ? "tcp" : "udp",
                     forward.host_address, forward.host_port, forward.guest_port);
}

std::optional<Misfit> find_misfit(const MachineSpecification& specification) {
  return Rules(specification).run();
}

Result<void> check(const MachineSpecification& specification) {
  const auto misfit = find_misfit(specification);
  if (!misfit) return {};
  return failure(ErrorKind::invalid_argument,
                 fmt::format("{}: {}", describe_place(misfit->place), misfit->message));
}

}  // namespace berth::machine
