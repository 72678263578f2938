// What the kernel and other programs say about a host, read from their text. Pure; no I/O.
//
// Lenient: what is not understood is left out. proc(5) has the formats.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace berth::machine {

/// Parts between any of `separators`; no empty ones.
std::vector<std::string_view> split(std::string_view text, std::string_view separators);

/// The decimal number that the text begins with, after blanks.
std::optional<std::uint64_t> leading_number(std::string_view text);

/// /proc/cpuinfo.
struct CpuInfo {
  std::string model;        // "AMD EPYC 7763", or ""
  unsigned processors = 0;  // that are online
  bool has_flags = false;   // there was a list of flags at all (x86)
  bool vmx = false;         // Intel's virtualization
  bool svm = false;         // AMD's
  bool hypervisor = false;  // this is itself a guest
};
CpuInfo parse_cpuinfo(std::string_view text);

/// A line of /proc/meminfo such as "MemTotal:  24684084 kB", in bytes.
std::optional<std::uint64_t> meminfo_bytes(std::string_view text, std::string_view field);

/// A field of the mapping in /proc/PID/smaps that begins at `address`, in bytes.
std::optional<std::uint64_t> smaps_bytes(std::string_view text, std::uint64_t address,
                                         std::string_view field);

/// A line of /proc/swaps.
struct SwapArea {
  std::string name;
  std::string type;  // file or partition
  std::uint64_t size_bytes = 0;
  std::uint64_t used_bytes = 0;
  bool zram() const { return name.starts_with("/dev/zram"); }
};
std::vector<SwapArea> parse_swaps(std::string_view text);

/// The word in brackets: "madvise" of "always [madvise] never"; the whole, trimmed, without any.
std::string chosen_word(std::string_view text);

/// A version of two or three numbers.
struct Version {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned patch = 0;
  auto operator<=>(const Version&) const = default;
};
std::string to_string(const Version& version);
/// The first one in the text: of "QEMU emulator version 7.2.22 (Debian …)", of "6.1.0-18-amd64".
std::optional<Version> find_version(std::string_view text);

/// What `qemu-system-x86_64 -accel help` lists.
std::vector<std::string> parse_accelerators(std::string_view text);

}  // namespace berth::machine
