// What a machine is: the contents of a vm.toml, and the same as JSON beside the machine's disks.
//
// Pure; no I/O. Both forms have the same keys: docs/vm-toml.md has every one. A mistake is
// `invalid_argument` and says where it is and what was expected there, in a vm.toml with its line
// ("web.toml:7: memory: expected a size such as \"1G\", found true"), in JSON with its member
// ("disk[1].size: ..."); an unknown key is a mistake, and the message lists the keys that there
// are. So is what cannot work together (two disks of one name, a kernel command line without a
// kernel).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::machine {

constexpr std::uint64_t machine_memory_min = std::uint64_t{16} << 20;  // bytes
constexpr std::uint64_t machine_memory_max = std::uint64_t{4} << 40;
constexpr unsigned machine_cpus_max = 255;
constexpr std::uint64_t machine_memory_multiple = std::uint64_t{2} << 20;
constexpr std::uint64_t machine_limit_memory_min = std::uint64_t{64} << 20;
constexpr double machine_limit_cpus_min = 0.01;  // what a quota of the kernel's can express
constexpr double machine_limit_cpus_max = 1024;
constexpr std::size_t machine_disks_max = 24;
constexpr std::size_t machine_cdroms_max = 6;  // ports of the machine's SATA controller
constexpr std::size_t machine_networks_max = 8;
constexpr std::size_t machine_forwards_max = 64;  // of one network
constexpr std::uint32_t machine_stop_timeout_s_max = 24 * 60 * 60;
constexpr std::size_t machine_path_length_max = 4095;          // bytes
constexpr std::size_t machine_command_line_length_max = 2047;  // bytes; Linux on x86: 2048 with a 0
constexpr std::size_t machine_toml_bytes_max = std::size_t{1} << 20;
constexpr std::size_t machine_json_bytes_max = std::size_t{1} << 19;  // fits into one control line

struct DiskSpecification {
  std::string name;        // in the machine: [a-z0-9][a-z0-9-]{0,15}
  std::string volume;      // a volume that exists; "": one of the machine's own, made with it
  std::uint64_t size = 0;  // bytes, a multiple of 512, of a disk of its own; 0: that of the image
  std::uint32_t block_size = 0;  // of a disk of its own; 0: the default
  std::string image;        // absolute path of a disk image to begin with; "" for an empty disk
  bool over_image = false;  // the image stays the backing; else it is copied
  bool read_only = false;
  friend bool operator==(const DiskSpecification&, const DiskSpecification&) = default;
};

/// An ISO image in a CD drive. It is served as a read-only volume like any disk.
struct CdromSpecification {
  std::string image;  // absolute path
  friend bool operator==(const CdromSpecification&, const CdromSpecification&) = default;
};

struct PortForward {
  enum class Protocol : std::uint8_t { tcp, udp };
  Protocol protocol = Protocol::tcp;
  std::string host_address = "127.0.0.1";  // numeric, IPv4; 0.0.0.0: every one of the host's
  std::uint16_t host_port = 0;
  std::uint16_t guest_port = 0;
  friend bool operator==(const PortForward&, const PortForward&) = default;
};

struct NetworkSpecification {
  enum class Mode : std::uint8_t { user, tap };
  Mode mode = Mode::user;
  std::vector<PortForward> forwards;  // of `user`
  std::string tap;                    // of `tap`: a host interface that exists
  std::string mac;                    // lower case; "" in a vm.toml: made from the machine's id
  friend bool operator==(const NetworkSpecification&, const NetworkSpecification&) = default;
};

struct KernelSpecification {
  std::string image;  // absolute path of a kernel; "": the firmware boots a disk
  std::string initrd;
  std::string command_line;
  friend bool operator==(const KernelSpecification&, const KernelSpecification&) = default;
};

/// For a NoCloud seed (cloud-init). Absent: the guest gets none.
struct CloudInitSpecification {
  std::string user_data;
  std::string meta_data;       // "": instance-id and local-hostname from the machine
  std::string network_config;  // "" for none
  friend bool operator==(const CloudInitSpecification&, const CloudInitSpecification&) = default;
};

/// For the machine's control group; 0 for no limit.
struct LimitSpecification {
  double cpus = 0;           // of host CPU time, 1.5 is one and a half CPUs
  std::uint64_t memory = 0;  // bytes, of QEMU with everything, beside the machine's own memory
  friend bool operator==(const LimitSpecification&, const LimitSpecification&) = default;
};

struct MachineSpecification {
  enum class OnCrash : std::uint8_t { restart, preserve };
  std::string name;  // as a volume's (layout.h)
  unsigned cpus = 1;
  std::uint64_t memory = 0;  // bytes, a multiple of 2 MiB
  std::string machine_type;  // a versioned q35 ("pc-q35-7.2"); "" in a vm.toml: the newest known
  std::string cpu_model;     // a named one, or "host"; "" in a vm.toml: a default that hosts have
  KernelSpecification kernel;
  std::vector<DiskSpecification> disks;
  std::vector<CdromSpecification> cdroms;
  std::vector<NetworkSpecification> networks;  // a vm.toml without one gets one of mode `user`
  std::optional<CloudInitSpecification> cloud_init;
  bool vnc = false;
  bool agent = true;
  bool autostart = false;
  OnCrash on_crash = OnCrash::restart;
  std::uint32_t stop_timeout_s = 60;  // how long a guest may take to shut down before it is ended
  LimitSpecification limits;
  friend bool operator==(const MachineSpecification&, const MachineSpecification&) = default;
};

/// `file` is for messages; `directory`, an absolute path, is what relative paths in it begin at.
Result<MachineSpecification> parse_machine_toml(std::string_view text, std::string_view file,
                                                std::string_view directory);

/// The canonical form, as it is kept in machine.json and shown by the API: every key, sizes in
/// bytes.
Json encode(const MachineSpecification& specification);
/// The inverse of encode. Keys that are absent or null are as in a vm.toml without them. Paths are
/// absolute.
Result<MachineSpecification> decode_machine(const Json& json);

/// invalid_argument unless a disk may be called that.
Result<void> check_disk_name(std::string_view name);

/// What must hold of any specification, wherever it comes from (sizes, names, counts,
/// combinations).
Result<void> check(const MachineSpecification& specification);

}  // namespace berth::machine
