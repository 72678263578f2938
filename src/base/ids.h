// 128-bit random identities: of volumes, of reference points (their nonce), of jobs.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace berth {

struct Id128 {
  std::array<std::byte, 16> bytes{};

  bool is_nil() const { return *this == Id128{}; }
  /// 8-4-4-4-12 lower-case hexadecimal digits (RFC 4122's text form).
  std::string to_string() const;
  static Result<Id128> parse(std::string_view text);

  friend auto operator<=>(const Id128&, const Id128&) = default;
  friend bool operator==(const Id128&, const Id128&) = default;
};

/// A source of random numbers, so that simulations can seed it.
class Random {
 public:
  virtual ~Random() = default;
  virtual void fill(std::span<std::byte> bytes) = 0;
  /// A random version 4 UUID (RFC 4122, section 4.4).
  Id128 id();
};

/// The kernel's generator (getrandom).
class SystemRandom final : public Random {
 public:
  void fill(std::span<std::byte> bytes) override;
};

}  // namespace berth
