// What is compressed in any way that libarchive knows (gzip, bzip2, xz, lzma, zstd, lz4), or not at
// all. Blocking.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::container {

/// Unpacked, no more than `bytes_max` (`limit`). `io_error` for what ends too early or is damaged.
Result<std::string> decompress(std::string_view bytes, std::size_t bytes_max);
/// The same of a file, which is named in errors.
Result<std::string> decompress_file(const std::string& path, std::size_t bytes_max);

}  // namespace berth::container
