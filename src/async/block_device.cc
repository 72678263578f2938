#include "async/block_device.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <utility>

#include <sys/sysmacros.h>

#include <fmt/format.h>

#include "async/boot_id.h"

namespace berth {
namespace {

constexpr std::size_t attribute_length_max = 512;

/// The first line of a sysfs attribute, printable and trimmed; "" if there is none.
std::string attribute(const std::string& directory, const char* name) {
  std::ifstream file(directory + "/" + name);
  std::string line;
  std::getline(file, line);
  line.resize(std::min(line.size(), attribute_length_max));
  for (char& c : line) {
    if (c < 0x20 || c > 0x7e) c = ' ';
  }
  const auto first = line.find_first_not_of(' ');
  if (first == std::string::npos) return "";
  return line.substr(first, line.find_last_not_of(' ') - first + 1);
}

/// Attributes that name a disk for good, best first, and what their values are called.
constexpr std::array<std::pair<const char*, const char*>, 5> lasting_names{{
    {"dm/uuid", "dm"},
    {"md/uuid", "md"},
    {"wwid", "wwid"},         // NVMe
    {"device/wwid", "wwid"},  // SCSI, SATA
    {"serial", "serial"},     // virtio
}};

Result<std::string> disk_identity(const std::string& directory, std::uint64_t device) {
  for (const auto& [name, kind] : lasting_names) {
    if (const std::string value = attribute(directory, name); !value.empty())
      return fmt::format("{}:{}", kind, value);
  }
  const std::string sequence = attribute(directory, "diskseq");  // Linux 5.15
  return fmt::format(
      "attached:{}:{}", TRY(read_boot_id()),
      sequence.empty() ? fmt::format("{}:{}", major(device), minor(device)) : sequence);
}

}  // namespace

Result<std::string> block_device_identity(std::uint64_t device, const std::string& sysfs) {
  const std::string directory =
      fmt::format("{}/dev/block/{}:{}", sysfs, major(device), minor(device));
  const std::string partition = attribute(directory, "partition");
  if (partition.empty()) return disk_identity(directory, device);
  // The directory of a partition lies in that of its disk.
  return fmt::format("{}:partition{}:{}", TRY(disk_identity(directory + "/..", device)), partition,
                     attribute(directory, "start"));
}

}  // namespace berth
