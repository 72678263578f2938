#include "base/read_ahead.h"

#include <algorithm>

#include <fcntl.h>

#include "base/units.h"

namespace berth {
namespace {

// Of one request the kernel reads no more than a disk's read-ahead, 128 KiB unless somebody has set
// it lower.
constexpr std::uint64_t piece_max = 128 * KiB;

}  // namespace

Result<void> read_ahead(const Fd& file, std::uint64_t offset, std::uint64_t length) {
  for (std::uint64_t done = 0; done < length; done += piece_max) {
    const std::uint64_t piece = std::min(piece_max, length - done);
    const int error = ::posix_fadvise(file.get(), static_cast<off_t>(offset + done),
                                      static_cast<off_t>(piece), POSIX_FADV_WILLNEED);
    if (error != 0) return errno_failure(error, "cannot read ahead");
  }
  return {};
}

}  // namespace berth
