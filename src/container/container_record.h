// What a container is, and what has become of it: container.json and state.json
// (docs/formats/containers.md).
//
// Pure: no I/O. Documents may hold anything: what does not fit is `corrupt`, a request that cannot
// be met `invalid_argument` with the member that is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::container {

using machine::Json;

constexpr std::size_t container_name_length_max = 48;  // bytes: sockets lie below it
constexpr std::uint64_t container_memory_min = std::uint64_t{64} << 20;
constexpr std::uint64_t container_memory_max = std::uint64_t{1} << 40;
constexpr std::uint64_t container_memory_multiple = std::uint64_t{2} << 20;
constexpr std::uint64_t container_memory_default = std::uint64_t{256} << 20;
constexpr double container_cpus_max = 255;
constexpr std::size_t container_ports_max = 64;
constexpr std::size_t container_mounts_max = 16;
constexpr std::size_t container_arguments_max = 1024;                     // words of a command
constexpr std::size_t container_environment_max = 1024;                   // variables
constexpr std::size_t container_words_bytes_max = std::size_t{96} << 10;  // all of both
constexpr std::uint32_t container_stop_timeout_s_default = 10;
constexpr std::uint32_t container_stop_timeout_s_max = 24 * 60 * 60;
constexpr const char* park_never = "never";
constexpr std::uint64_t container_log_bytes_min = std::uint64_t{64} << 10;
constexpr std::uint64_t container_log_bytes_default = std::uint64_t{64} << 20;

/// A TCP port of the host's that leads to one of the container.
struct PublishedPort {
  std::string host_address;     // a literal, "0.0.0.0" where nobody said
  std::uint16_t host_port = 0;  // 0: a free one, chosen at each start
  std::uint16_t guest_port = 0;
  friend bool operator==(const PublishedPort&, const PublishedPort&) = default;
};

/// A volume with a file system, in the container's root.
struct ContainerMount {
  std::string volume;
  std::string path;  // absolute
  bool read_only = false;
  friend bool operator==(const ContainerMount&, const ContainerMount&) = default;
};

struct ContainerSpecification {
  enum class Network : std::uint8_t { none, user };
  enum class Isolation : std::uint8_t {
    machine,  // a microVM of its own
    process,  // the host's kernel
  };

  std::string name;
  std::string image;                     // the digest
  std::string image_name;                // as it was asked for
  std::vector<std::string> arguments;    // all of the command; at least one
  std::vector<std::string> environment;  // "NAME=value"
  std::string working_directory;         // "" for /
  std::string user;                      // "" for root; as OCI has it
  std::string hostname;
  std::string stop_signal;  // "SIGTERM"
  std::uint32_t stop_timeout_s = container_stop_timeout_s_default;
  bool terminal = false;
  bool input = false;   // somebody may write to its standard input
  bool remove = false;  // it goes when it has ended
  double cpus = 1;      // of CPU time; the guest has so many, rounded up
  std::uint64_t memory = container_memory_default;  // bytes, the guest's
  Network network = Network::user;
  Isolation isolation = Isolation::machine;
  std::vector<PublishedPort> ports;
  std::string template_name;  // that it is a clone of; "" for none
  std::string overlay;        // the volume that its changes lie in, ext4; "": the guest's memory
  std::vector<ContainerMount> mounts;
  std::map<std::string, std::string> labels;
  std::string park_after;  // a duration, or park_never; "" for what holds on its host
  std::uint64_t log_bytes = container_log_bytes_default;
  /// What it writes to them must be there when it has ended.
  bool has_volumes() const { return !overlay.empty() || !mounts.empty(); }
  friend bool operator==(const ContainerSpecification&, const ContainerSpecification&) = default;
};

struct ContainerRecord {
  Id128 id;
  std::uint32_t uid = 0;   // that its QEMU runs as where the keeper is root
  std::string created_at;  // RFC 3339
  ContainerSpecification specification;
  friend bool operator==(const ContainerRecord&, const ContainerRecord&) = default;
};

/// What it is meant to be doing, and how it ended.
struct ContainerState {
  bool running = false;
  bool ended = false;        // it has run, and the rest is true of its last run
  std::string started_at;    // "" before the first time
  std::string finished_at;   // likewise
  unsigned exit_code = 0;    // as a shell has it: 128 and the signal where it was one
  unsigned exit_signal = 0;  // 0: it ended by itself
  std::string error;         // why it could not be run, or was not ended by itself; ""
  friend bool operator==(const ContainerState&, const ContainerState&) = default;
};

const char* to_string(ContainerSpecification::Network network);
const char* to_string(ContainerSpecification::Isolation isolation);

/// What must hold of any specification, wherever it comes from.
Result<void> check(const ContainerSpecification& specification);

Json encode(const ContainerSpecification& specification);
/// Members that are absent are as above; unknown ones are mistakes.
Result<ContainerSpecification> decode_container(const Json& json);
Json encode_ports(const std::vector<PublishedPort>& ports);
Result<std::vector<PublishedPort>> decode_ports(const Json& json);
Json encode(const ContainerRecord& record);
Result<ContainerRecord> decode_container_record(std::string_view text);
Json encode(const ContainerState& state);
Result<ContainerState> decode_container_state(std::string_view text);

/// "SIGTERM", "TERM", "15": its number. invalid_argument.
Result<unsigned> signal_number(std::string_view text);

}  // namespace berth::container
