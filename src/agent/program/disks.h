// Disks by their serial numbers, and what is mounted of them for the workload: `mount`.
#pragma once

#include <string>
#include <vector>

#include "agent/fields.h"
#include "base/fd.h"

namespace berth::agent {

/// The device of the virtio disk with this serial number; "" where there is none.
std::string find_disk(const std::string& serial);
/// Of everything in a directory that does not begin with a dot; none where it cannot be read.
std::vector<std::string> names_in(const std::string& directory);

/// What was mounted for the host, until the guest ends. Destroying it changes nothing.
class Mounts {
 public:
  /// `not_found`: no such disk; `in_use`: it is mounted there already.
  Result<void> mount(const Fields& fields);
  /// Makes file systems clean, as far as nobody writes to them.
  void leave();

 private:
  std::vector<Fd> roots_;
};

}  // namespace berth::agent
