// Files of the kernel and of the image, read and written whole. Nothing here waits for a FIFO or a
// terminal that an image has put in the place of a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
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
Result<void> write_all(int fd, Bytes bytes);

/// Whether somebody may be reading a file while it is written.
enum class Readers : std::uint8_t { maybe, none };

/// A file of this name and mode in the image's tree, which the agent writes again and again. What
/// it has made stays open: where it is there still, and nobody reads, it is written in place, for
/// which an emulated CPU has a fifth of the code to translate that a new file takes.
class OwnFile {
 public:
  OwnFile(std::string path, mode_t mode);
  /// Puts the text there, in the place of whatever has this name. Its directory is made if need be.
  Result<void> write(std::string_view text, Readers readers);

 private:
  std::optional<std::size_t> size_there() const;
  Result<void> write_in_place(std::string_view text, std::size_t size_before) const;
  Result<void> replace(std::string_view text);

  std::string path_;
  mode_t mode_;
  Fd made_;
};

}  // namespace berth::agent
