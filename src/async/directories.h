// Directories made on demand.
#pragma once

#include <string>

#include "base/result.h"

namespace berth {

/// Makes the directory at an absolute path, and its parents, with mode 0700 where they are missing;
/// the names of the new ones are durable when it returns. Blocking.
Result<void> make_directories(const std::string& path);

}  // namespace berth
