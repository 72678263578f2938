// SimRandom: the choices of a simulation. The same seed gives the same numbers on every machine.
// xoshiro256** (Blackman and Vigna, 2018), seeded through splitmix64.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "base/ids.h"

namespace berth {

/// A good 64-bit mix of one number (splitmix64's finalizer).
constexpr std::uint64_t mix64(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

class SimRandom final : public Random {
 public:
  explicit SimRandom(std::uint64_t seed) {
    for (std::size_t i = 0; i < state_.size(); ++i) state_[i] = mix64(seed + (i + 1) * 0x51f2cd1b);
  }

  std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// One of 0 .. count-1; 0 when count is 0.
  std::uint64_t below(std::uint64_t count) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * count) >> 64);
  }
  /// One of low .. high, both included.
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + below(high - low + 1);
  }
  /// True once in `count` times.
  bool one_in(std::uint64_t count) { return below(count) == 0; }
  bool chance(double probability) {
    return static_cast<double>(next() >> 11) * 0x1p-53 < probability;
  }
  /// One of the elements; there is at least one.
  template <typename Range>
  auto& pick(Range& from) {
    return from[below(from.size())];
  }
  template <typename Range>
  void shuffle(Range& range) {
    for (std::size_t i = range.size(); i > 1; --i) std::swap(range[i - 1], range[below(i)]);
  }

  void fill(std::span<std::byte> bytes) override {
    while (!bytes.empty()) {
      const std::uint64_t value = next();
      const std::size_t length = bytes.size() < sizeof value ? bytes.size() : sizeof value;
      std::memcpy(bytes.data(), &value, length);
      bytes = bytes.subspan(length);
    }
  }

 private:
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace berth
