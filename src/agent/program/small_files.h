// Files of the kernel and of the image, read and written whole. Nothing here waits for a FIFO or a
// terminal that an image has put in the place of a file.
#pragma once

#include <string>
#include <string_view>

#include <sys/types.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/result.h"

namespace berth::agent {

constexpr std::size_t small_file_max = std::size_t{1} << 20;  // bytes

/// Also of /proc and /sys. `limit` where it has more than small_file_max.
Result<std::string> read_small_file(const std::string& path);
/// The same without what the file's last line ends with; "" where it cannot be read.
std::string read_line(const std::string& path);
/// Into a file that is there, of /proc or /sys.
Result<void> write_setting(const std::string& path, std::string_view text);
/// Puts a new file in the place of whatever has this name.
Result<void> replace_file(const std::string& path, std::string_view text, mode_t mode);
Result<void> write_all(int fd, Bytes bytes);

}  // namespace berth::agent
