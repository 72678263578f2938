#include "base/checksum.h"

#include <xxhash.h>

namespace berth {

std::uint64_t checksum64(Bytes bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

}  // namespace berth
