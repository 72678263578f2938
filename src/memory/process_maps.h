// What a process has mapped where (Linux, Documentation/filesystems/proc.rst, "/proc/PID/maps").
//
// Blocking, well below a millisecond; one call at a time. The process is held by its memory, not by
// its number: a later process with the same one is never looked at.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"

namespace berth::memory {

struct Mapping {
  std::uint64_t address = 0;
  std::uint64_t length = 0;
  std::uint64_t offset = 0;  // in the file
  dev_t device = 0;
  ino_t inode = 0;  // 0: of no file
  bool is_shared = false;
  bool is_writable = false;
  bool is_code = false;
  bool is_named = false;  // a file, or something of the kernel's but for the heap
};

class ProcessMaps {
 public:
  /// `name` is that of what is looked at, for messages. `not_found` if there is no such process.
  static Result<ProcessMaps> open(pid_t pid, std::string name);

  /// All of them, in order. `disconnected` if the process has ended, `limit` if there are too many.
  Result<std::vector<Mapping>> read();
  /// The files that its program is made of, itself and its libraries: paths, and where what is
  /// mapped of each ends, bytes.
  Result<std::map<std::string, std::uint64_t>> programs();

 private:
  ProcessMaps(std::string name, Fd maps) : name_(std::move(name)), maps_(std::move(maps)) {}
  Result<std::string_view> read_text();

  std::string name_;
  Fd maps_;
  std::string text_ = std::string(std::size_t{256} << 10, '\0');
};

}  // namespace berth::memory
