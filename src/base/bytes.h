// Fixed-width integers in and out of byte buffers, little endian (our formats) and big endian
// (NBD). The caller guarantees the bounds; Reader and Writer check them.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace berth {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

template <std::unsigned_integral T>
T load_le(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return std::endian::native == std::endian::little ? value : std::byteswap(value);
}

template <std::unsigned_integral T>
T load_be(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return std::endian::native == std::endian::big ? value : std::byteswap(value);
}

template <std::unsigned_integral T>
void store_le(std::byte* to, T value) {
  if constexpr (std::endian::native != std::endian::little) value = std::byteswap(value);
  std::memcpy(to, &value, sizeof value);
}

template <std::unsigned_integral T>
void store_be(std::byte* to, T value) {
  if constexpr (std::endian::native != std::endian::big) value = std::byteswap(value);
  std::memcpy(to, &value, sizeof value);
}

inline Bytes as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

inline std::string_view as_text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Whether every byte is zero.
bool is_zero(Bytes bytes);

/// Reads little-endian fields one after the other; `ok()` turns false, for good, at the first field
/// that the buffer does not hold, and every later read gives zeros.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T le() {
    if (!take(sizeof(T))) return 0;
    return load_le<T>(bytes_.data() + position_ - sizeof(T));
  }
  Bytes raw(std::size_t length) {
    if (!take(length)) return {};
    return bytes_.subspan(position_ - length, length);
  }
  bool ok() const { return ok_; }
  std::size_t remaining() const { return bytes_.size() - position_; }

 private:
  bool take(std::size_t length) {
    if (!ok_ || length > bytes_.size() - position_) return ok_ = false;
    position_ += length;
    return true;
  }

  Bytes bytes_;
  std::size_t position_ = 0;
  bool ok_ = true;
};

/// Writes little-endian fields one after the other; `ok()` turns false, for good, at the first
/// field that does not fit, and nothing is written from there on.
class Writer {
 public:
  explicit Writer(MutableBytes bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  void le(T value) {
    if (take(sizeof(T))) store_le<T>(bytes_.data() + position_ - sizeof(T), value);
  }
  void raw(Bytes bytes) {
    if (take(bytes.size()) && !bytes.empty()) {
      std::memcpy(bytes_.data() + position_ - bytes.size(), bytes.data(), bytes.size());
    }
  }
  bool ok() const { return ok_; }
  std::size_t position() const { return position_; }

 private:
  bool take(std::size_t length) {
    if (!ok_ || length > bytes_.size() - position_) return ok_ = false;
    position_ += length;
    return true;
  }

  MutableBytes bytes_;
  std::size_t position_ = 0;
  bool ok_ = true;
};

}  // namespace berth
