// Speaks to the preload inside a QEMU (docs/formats/memory-channel.md), which serves one client at
// a time: connect, ask, go.
//
// Blocking, a few seconds at the most: on a worker thread, one call at a time. What a guest may
// have taken over is at the other end: its answers are checked, and what it says of itself is only
// ever used on itself.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "memory/dirty_scan.h"
#include "memory/preload/channel_format.h"

namespace berth::memory {

class MemoryChannel {
 public:
  /// `disconnected` if nobody serves it.
  static Result<MemoryChannel> connect(const std::string& path);

  /// `precondition` while the memory is not mapped.
  Result<channel::Answer> describe();
  /// Maps these ranges of the file, in order, over those of the memory. Where it fails, some of
  /// them may be mapped, each of them whole or not at all. `limit` where the process may not have
  /// so many mappings; `timed_out` or `disconnected` where it is not known what has been done.
  Result<void> map(const Fd& file, std::span<const PageRange> ranges);

 private:
  MemoryChannel(std::string path, Fd socket) : path_(std::move(path)), socket_(std::move(socket)) {}
  Result<channel::Answer> ask(const channel::Request& request, int fd);

  std::string path_;
  Fd socket_;
};

}  // namespace berth::memory
