// The lines of a container's log, while it is written: all of them, or the last ones.
//
// Blocking, short: pieces of the page cache. One call at a time.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <string>

#include "base/result.h"
#include "container/container_log.h"
#include "container/log_format.h"

namespace berth::container {

class LogLines {
 public:
  /// Of the log at `path`, from its beginning. No log so far is no error.
  explicit LogLines(std::string path);

  /// Passes over all but the last `count` lines of what is there now: the two streams' together, a
  /// line that has no end so far is one. Before the first read().
  Result<void> keep_last(std::size_t count);

  /// `begins`: it is the first entry of its line. Valid during the call.
  using Take = std::function<void(const LogEntry& entry, bool begins)>;
  /// The next entries, 64 KiB of them at a time; whether there may be more already.
  Result<bool> read(const Take& take);
  /// All that there is now.
  Result<void> read_all(const Take& take);

 private:
  struct Line {
    bool goes_on = false;  // after the last entry
    bool is_skipped = false;
  };

  std::string path_;
  LogReader reader_;
  std::size_t skipped_ = 0;    // lines that are still to be passed over
  std::array<Line, 2> lines_;  // of each stream
};

}  // namespace berth::container
