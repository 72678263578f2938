// What goes over the channel into a QEMU that has the preload: docs/formats/memory-channel.md, byte
// by byte. Both sides are on one host. Only constants and structures: the preload includes it,
// which has no C++ library.
#pragma once

#include <bit>

#include <stdint.h>

namespace berth::memory::channel {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t magic = 0x484d5442;  // "BTMH"
constexpr uint16_t version = 1;
constexpr unsigned ranges_max = 1024;  // of a request
/// All ranges begin and end at multiples of it, but for the memory's end.
constexpr uint64_t granule_min = 64 << 10;

enum Operation : uint16_t { describe = 1, map = 2 };

enum Status : uint32_t {
  done = 0,
  malformed = 1,      // not a request of this version
  not_mapped = 2,     // the memory is not mapped yet, or not once and whole
  out_of_bounds = 3,  // a range is not in the memory, or they are not in order
  wrong_file = 4,     // none, or none that can be mapped there
  refused = 5,        // by the kernel: `error` has its errno
};

/// Of the memory, bytes.
struct Range {
  uint64_t offset;
  uint64_t length;
};

struct RequestHead {
  uint32_t magic;
  uint16_t version;
  uint16_t operation;
  uint32_t ranges;  // that follow
  uint32_t reserved;
};
struct Request {
  RequestHead head;
  Range range[ranges_max];
};

struct Answer {
  uint32_t magic;
  uint16_t version;
  uint16_t operation;
  uint32_t status;
  uint32_t error;
  uint32_t ranges;    // that have been mapped, the first of the request's
  uint32_t is_clone;  // 1 or 0
  uint64_t address;   // of the memory in the process
  uint64_t size;      // of the memory, bytes
  uint64_t device;    // st_dev and st_ino of the file that it is of
  uint64_t inode;
};

static_assert(sizeof(RequestHead) == 16 && sizeof(Range) == 16 && sizeof(Answer) == 56);

}  // namespace berth::memory::channel
