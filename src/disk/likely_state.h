// What a block of a damaged map page most likely is, from what the data file has of it. For an open
// that must go on, and for a repair. Blocking.
#pragma once

#include <optional>

#include "async/file.h"
#include "disk/types.h"

namespace berth::disk {

/// Whether any byte of the range was ever written to the file and not zeroed since (SEEK_DATA).
Result<bool> has_data(File& data, std::uint64_t offset, std::uint64_t length);

/// The state of a block whose newest word is gone; an older one may be known. What was ever written
/// to the data file and not zeroed since is data there: a block with data is present, whatever it
/// was before. One without keeps what it was: it cannot have been written since, and if it was
/// zeroed, a hole reads the same. Where nothing is known, it reads its backing, if there is one; a
/// block of it that was zeroed looks the same, and comes back.
BlockState likely_state(std::optional<BlockState> older, bool has_data, bool has_backing);

}  // namespace berth::disk
