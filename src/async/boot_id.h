// Which run of the machine's kernel this is: a new random id with every boot.
#pragma once

#include <string>

#include "base/result.h"

namespace berth {

/// The text of /proc/sys/kernel/random/boot_id. Blocking, and short.
Result<std::string> read_boot_id();

}  // namespace berth
