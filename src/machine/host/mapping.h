// Memory that a probe maps, unmapped when its owner goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include <sys/mman.h>

namespace berth::machine {

class Mapping {
 public:
  Mapping() = default;
  /// As mmap(2), at a place of the kernel's choice; nothing mapped if that failed, see errno.
  Mapping(std::size_t size, int protection, int flags, int fd)
      : address_(::mmap(nullptr, size, protection, flags, fd, 0)), size_(size) {}
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, MAP_FAILED)), size_(other.size_) {}
  Mapping& operator=(Mapping&&) = delete;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (address_ != MAP_FAILED) ::munmap(address_, size_);
  }

  explicit operator bool() const { return address_ != MAP_FAILED; }
  void* data() const { return address_; }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(address_); }
  std::size_t size() const { return size_; }

  /// Really writes, whatever the compiler knows about who reads it.
  void write_byte(std::size_t offset) const {
    static_cast<volatile unsigned char*>(address_)[offset] = 1;
  }

 private:
  void* address_ = MAP_FAILED;
  std::size_t size_ = 0;
};

}  // namespace berth::machine
