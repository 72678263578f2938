// An archive that the kernel unpacks as its initramfs: cpio's "newc", uncompressed.
//
// Deterministic: owners are root, times 1970, and inodes are counted; the same entries in the same
// order are the same bytes.
// Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace berth::container {

class CpioWriter {
 public:
  /// Paths without a slash in front; a directory before what is in it. `mode`: permissions alone.
  void add_directory(std::string_view path, std::uint32_t mode);
  void add_file(std::string_view path, std::uint32_t mode, Bytes content);
  void add_character_device(std::string_view path, std::uint32_t mode, std::uint32_t major,
                            std::uint32_t minor);
  /// The archive; nothing may be added after it.
  std::string finish();

 private:
  struct Entry {
    std::string_view path;
    std::uint32_t mode = 0;  // with the type
    std::uint32_t links = 1;
    std::uint32_t device_major = 0;
    std::uint32_t device_minor = 0;
    Bytes content;
  };
  void add(const Entry& entry);

  std::string archive_;
  std::uint32_t inode_ = 0;
};

}  // namespace berth::container
