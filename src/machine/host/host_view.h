// What the doctor looks at: Berth's directories, and the files by which the kernel describes the
// host, below a prefix that tests set.
//
// Blocking; any thread. What cannot be read is nothing, for the probe to interpret.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace berth::machine {

/// At most 4 MiB of a file; nothing if it cannot be read.
std::optional<std::string> read_text_file(const std::string& path);

struct HostView {
  std::string state_dir;
  std::string run_dir;
  std::string api_socket;
  std::string root = {};  // in front of /proc, /sys, /dev and /etc; "" on a real host

  std::string path(std::string_view absolute) const { return root + std::string(absolute); }
  std::optional<std::string> read(std::string_view absolute) const {
    return read_text_file(path(absolute));
  }
  /// The number that the file begins with.
  std::optional<std::uint64_t> read_number(std::string_view absolute) const;
};

/// `path`, or its nearest ancestor that is there.
std::string existing_ancestor(const std::string& path);

}  // namespace berth::machine
