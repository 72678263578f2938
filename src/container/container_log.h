// What a container's main process has written: appended to its log, and read from there by whoever
// is attached (docs/formats/containers.md).
//
// Blocking, short: the files are small pieces of the page cache. The writer is the container's
// keeper; how far it has come is in a file in memory that outlives it, so that the next keeper goes
// on without losing a byte or writing one twice.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "container/log_format.h"

namespace berth::container {

class ContainerLog {
 public:
  /// `cursor`: where the file in memory is. A new run begins at position 0 of both streams;
  /// otherwise what the last keeper wrote, and did not count, is cut off. `bytes_max`: of log and
  /// log.old together.
  static Result<ContainerLog> open(std::string path, const std::string& cursor,
                                   std::uint64_t bytes_max, bool is_new_run);
  ContainerLog(ContainerLog&&) noexcept;
  ContainerLog& operator=(ContainerLog&&) = delete;
  ~ContainerLog();

  /// Everything, or an error and nothing: then it may be tried again.
  Result<void> append(LogStream stream, std::string_view written,
                      std::chrono::system_clock::time_point at);
  /// How many bytes of the stream are in the log, since the run began.
  std::uint64_t position(LogStream stream) const;
  /// They were lost before they came here.
  void skip(LogStream stream, std::uint64_t bytes);

 private:
  struct Place {
    std::uint64_t size = 0;  // of the file, whole
    std::array<std::uint64_t, 2> positions{};
  };
  /// In memory that outlives the process: one place counts while the other one is written.
  struct Cursor {
    std::uint64_t current = 0;
    std::array<Place, 2> places;
  };
  ContainerLog(std::string path, Fd file, Cursor* cursor, std::uint64_t bytes_max)
      : path_(std::move(path)), file_(std::move(file)), cursor_(cursor), bytes_max_(bytes_max) {}
  Place place() const;
  void set_place(const Place& place);
  Result<void> begin_next_file();

  std::string path_;
  Fd file_;
  Cursor* cursor_;  // mapped
  std::uint64_t bytes_max_;
};

/// Reads a log while it is written, whole lines at a time.
class LogReader {
 public:
  /// From its beginning, or from what is written from now on. No log so far is no error.
  enum class From : std::uint8_t { start, now };
  LogReader(std::string path, From from);

  /// The next lines, at most about `bytes_max` of them; "" where there is no more for now. Valid
  /// until the next call.
  Result<std::string_view> read(std::size_t bytes_max);

 private:
  bool open_next();

  std::string path_;
  Fd file_;
  bool old_done_ = false;  // log.old was read, or is not wanted
  std::uint64_t offset_ = 0;
  std::string buffer_;
};

}  // namespace berth::container
