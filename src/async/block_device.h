// What tells one disk from another, whatever name it has today.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace berth {

/// The identity of the block device `device` (a dev_t), from sysfs: the device mapper's or md's
/// uuid, the WWN, the serial number; a partition's is its disk's with its number and start. A
/// device with none of these (a loop device) is known for as long as it stays attached in this
/// boot, by boot id and disk sequence number: never the same as any other's. Blocking, and short.
Result<std::string> block_device_identity(std::uint64_t device, const std::string& sysfs = "/sys");

}  // namespace berth
