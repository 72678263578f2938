// The control group of one machine: where its QEMU runs, its limits, what it uses. In v1, v2 and
// hybrid layouts (cgroup_layout.h), below the group that the keeper itself is in.
//
// Blocking; each call is short. A controller that the host does not have is left out, and what
// needs it answers `unsupported`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace berth::machine {

/// Of its memory, what no file on a disk has, bytes.
struct ControlGroupMemory {
  std::uint64_t resident = 0;
  std::uint64_t swapped = 0;
};

struct ControlGroupUsage {
  std::optional<std::uint64_t> memory_bytes;
  std::optional<std::uint64_t> cpu_us;
};

class ControlGroup {
 public:
  /// Makes it, or finds it. Where this process may make no groups, an empty one: no limits, no
  /// usage.
  static ControlGroup open(const std::string& machine);

  /// Somebody will be moved into a group soon. For the first one in a while the kernel waits until
  /// all CPUs have passed by (RCU), 14 ms; it does so now, here. Does nothing else.
  static void expect_entry();

  /// A process that writes "0" into each of them is in the group. Empty where there is none.
  std::vector<std::string> process_files() const;
  /// 0 takes the limit away.
  Result<void> limit_cpus(double cpus);
  Result<void> limit_memory(std::uint64_t bytes);
  ControlGroupUsage usage() const;
  /// `unsupported` without a memory controller.
  Result<ControlGroupMemory> memory() const;
  /// Asks the kernel to take what memory it can: drops what files have, and swaps out the rest.
  /// `unsupported` likewise. Blocking, as long as swap takes.
  Result<void> reclaim() const;
  /// Its path as OCI runtimes have it: below the group that this process is in, or absolute.
  std::string runtime_path() const;
  /// Kills all that is in it.
  void kill() const;
  /// Once nothing runs in it. False where something is still on its way out: try again.
  bool remove();

 private:
  std::string v2_;  // its directories; "" where there is none
  std::string cpu_;
  std::string memory_;
  std::string freezer_;
  std::vector<std::string> others_;  // v1: of controllers that only others have use for
  std::string name_;
  bool is_v2_alone_ = false;
};

}  // namespace berth::machine
