// SharedMemory: memory that outlives the process but not the machine (a file in a tmpfs, mapped).
// The third seam of the engine: the simulated one outlives a simulated process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace berth {

class SharedMemory {
 public:
  virtual ~SharedMemory() = default;
  /// Page aligned; zero where never written; pages cost memory once touched, also by reading.
  virtual MutableBytes bytes() = 0;
};

/// A directory of such memory, such as /run/berth/live. All blocking.
class SharedMemoryStore {
 public:
  virtual ~SharedMemoryStore() = default;
  /// An existing region with its present size, or not_found.
  virtual Result<std::unique_ptr<SharedMemory>> open(const std::string& name) = 0;
  /// A new region of `size` zero bytes, in place of one of that name.
  virtual Result<std::unique_ptr<SharedMemory>> create(const std::string& name,
                                                       std::uint64_t size) = 0;
  virtual Result<void> remove(const std::string& name) = 0;
  /// Identifies this run of the machine's kernel (/proc/sys/kernel/random/boot_id).
  virtual std::string boot_id() const = 0;
};

}  // namespace berth
