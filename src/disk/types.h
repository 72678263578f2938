// The words of the volume engine, as types (DESIGN §2): epochs, block states, extents, limits.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/units.h"

namespace berth::disk {

/// A volume's count of cuts. A block's epoch is the one in which its content last changed; 0 =
/// never.
using Epoch = std::uint32_t;
constexpr Epoch epoch_max = (1U << 30) - 1;

/// Index of a block: its offset divided by the volume's block size.
using BlockIndex = std::uint64_t;

enum class BlockState : std::uint8_t {
  absent = 0,   // never written here: reads the backing, or the data file where there is no backing
  present = 1,  // reads the data file
  zero = 2,     // reads zeros, whatever the data file holds
};

/// What the map knows of a block: 30 bits of epoch, 2 bits of state.
struct MapWord {
  std::uint32_t raw = 0;

  static constexpr MapWord of(Epoch epoch, BlockState state) {
    return {epoch << 2 | static_cast<std::uint32_t>(state)};
  }
  constexpr Epoch epoch() const { return raw >> 2; }
  constexpr BlockState state() const { return static_cast<BlockState>(raw & 3U); }
  friend constexpr bool operator==(MapWord, MapWord) = default;
};

/// A range of a volume, in bytes.
struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  friend auto operator<=>(const Extent&, const Extent&) = default;
  friend bool operator==(const Extent&, const Extent&) = default;
};

// Limits. Every one is checked where the value enters, and answered with ErrorKind::limit or
// invalid_argument.
constexpr std::uint64_t volume_size_max = 64 * TiB;
constexpr std::uint32_t block_size_min = 4 * KiB;
constexpr std::uint32_t block_size_max = 2 * MiB;
constexpr std::uint32_t block_size_default = 64 * KiB;
constexpr std::uint64_t sector_size = 4096;  // what data, map and hold files are written in, bytes
constexpr std::uint64_t region_size = 4 * MiB;  // what an intent covers, bytes
constexpr std::size_t name_length_max = 128;    // of a checkpoint or a reference point, bytes
constexpr std::size_t hot_regions_default = 4096;
constexpr std::size_t request_size_max = 32 * MiB;

}  // namespace berth::disk
