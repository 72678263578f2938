// The checksum of every record that Berth writes: XXH3, 64 bits, seed 0 (xxHash, libxxhash).
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace berth {

std::uint64_t checksum64(Bytes bytes);

}  // namespace berth
