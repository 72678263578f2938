// What is to be copied, in order, one extent after the other and page by page: everything of a
// checkpoint or a file that is not zero, or what changed since a reference point. One loop; what it
// is made from outlives it.
#pragma once

#include <optional>
#include <string>

#include "base/units.h"
#include "disk/volume.h"

namespace berth::machine {

class ExtentSource {
 public:
  virtual ~ExtentSource() = default;
  /// Nothing after the last one.
  virtual Task<Result<std::optional<disk::Extent>>> next() = 0;
  /// Of the extents so far: false where some of them may not have changed.
  virtual bool exact() const { return true; }
};

// Data with at most this much between is one extent, zeros and all.
constexpr std::uint64_t data_gap_max = 64 * KiB;

std::unique_ptr<ExtentSource> data_of(disk::CheckpointReader& reader);

/// Of a file of which `size` bytes count. Blocking, as the file's next_data() is.
std::unique_ptr<ExtentSource> data_of(File& file, std::uint64_t size);

/// `request`: since, nonce and until; the rest is the source's.
std::unique_ptr<ExtentSource> changes_of(disk::Volume& volume, disk::ChangesRequest request);

}  // namespace berth::machine
