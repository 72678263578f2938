#include "container/container_log.h"

#include <atomic>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

namespace berth::container {
namespace {

Result<std::uint64_t> size_of(const Fd& file, const std::string& path) {
  struct stat status{};
  if (::fstat(file.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  return static_cast<std::uint64_t>(status.st_size);
}

Result<Fd> open_log_file(const std::string& path) {
  Fd file(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return errno_failure(errno, fmt::format("cannot open the log '{}'", path));
  return file;
}

std::string old_of(const std::string& path) { return path + ".old"; }

}  // namespace

Result<ContainerLog> ContainerLog::open(std::string path, const std::string& cursor,
                                        std::uint64_t bytes_max, bool is_new_run) {
  Fd file = TRY(open_log_file(path));
  const Fd memory(::open(cursor.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!memory || ::ftruncate(memory.get(), sizeof(Cursor)) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}'", cursor));
  void* mapped =
      ::mmap(nullptr, sizeof(Cursor), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (mapped == MAP_FAILED) return errno_failure(errno, fmt::format("cannot map '{}'", cursor));
  ContainerLog log(std::move(path), std::move(file), static_cast<Cursor*>(mapped), bytes_max);
  const std::uint64_t size = TRY(size_of(log.file_, log.path_));
  if (is_new_run) {
    log.set_place({.size = size, .positions = {}});
    return log;
  }
  Place place = log.place();
  if (place.size < size) {
    if (::ftruncate(log.file_.get(), static_cast<off_t>(place.size)) != 0)
      return errno_failure(errno, fmt::format("cannot cut '{}'", log.path_));
  } else {
    place.size = size;  // it had just become a new file
    log.set_place(place);
  }
  return log;
}

ContainerLog::ContainerLog(ContainerLog&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::move(other.file_)),
      cursor_(std::exchange(other.cursor_, nullptr)),
      bytes_max_(other.bytes_max_) {}

ContainerLog::~ContainerLog() {
  if (cursor_ != nullptr) ::munmap(cursor_, sizeof(Cursor));
}

ContainerLog::Place ContainerLog::place() const { return cursor_->places[cursor_->current & 1]; }

void ContainerLog::set_place(const Place& place) {
  const std::uint64_t next = 1 - (cursor_->current & 1);
  cursor_->places[next] = place;
  std::atomic_ref(cursor_->current).store(next, std::memory_order_release);
}

Result<void> ContainerLog::append(LogStream stream, std::string_view written,
                                  std::chrono::system_clock::time_point at) {
  const std::string entries = format_log_entries(log_time(at), stream, written);
  if (const Place before = place();
      before.size > 0 && before.size + entries.size() > bytes_max_ / 2)
    TRY(begin_next_file());
  Place place = this->place();
  std::size_t done = 0;
  while (done < entries.size()) {
    const ssize_t count = ::write(file_.get(), entries.data() + done, entries.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      (void)!::ftruncate(file_.get(), static_cast<off_t>(place.size));
      return errno_failure(error, fmt::format("cannot write to the log '{}'", path_));
    }
    done += static_cast<std::size_t>(count);
  }
  place.positions[static_cast<std::size_t>(stream)] += written.size();
  place.size += entries.size();
  set_place(place);
  return {};
}

std::uint64_t ContainerLog::position(LogStream stream) const {
  return place().positions[static_cast<std::size_t>(stream)];
}

void ContainerLog::skip(LogStream stream, std::uint64_t bytes) {
  Place place = this->place();
  place.positions[static_cast<std::size_t>(stream)] += bytes;
  set_place(place);
}

Result<void> ContainerLog::begin_next_file() {
  if (::rename(path_.c_str(), old_of(path_).c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot rename the log '{}'", path_));
  file_ = TRY(open_log_file(path_));
  Place place = this->place();
  place.size = 0;
  set_place(place);
  return {};
}

LogReader::LogReader(std::string path, From from) : path_(std::move(path)) {
  if (from == From::start) return;
  old_done_ = true;
  if (!open_next()) return;
  const auto size = size_of(file_, path_);
  if (size) offset_ = *size;
}

/// The next file in their order, if there is one that is not being read already.
bool LogReader::open_next() {
  if (!old_done_) {
    old_done_ = true;
    file_ = Fd(::open(old_of(path_).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (file_) return true;
  }
  Fd next(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  struct stat now{};
  struct stat then{};
  if (!next || ::fstat(next.get(), &now) != 0) return false;
  if (file_ && ::fstat(file_.get(), &then) == 0 && now.st_ino == then.st_ino &&
      now.st_dev == then.st_dev)
    return false;
  file_ = std::move(next);
  offset_ = 0;
  return true;
}

Result<std::string_view> LogReader::read(std::size_t bytes_max) {
  if (!file_ && !open_next()) return std::string_view();
  while (true) {
    buffer_.resize(bytes_max);
    const ssize_t count =
        ::pread(file_.get(), buffer_.data(), buffer_.size(), static_cast<off_t>(offset_));
    if (count < 0) {
      if (errno == EINTR) continue;
      return errno_failure(errno, fmt::format("cannot read the log '{}'", path_));
    }
    buffer_.resize(static_cast<std::size_t>(count));
    // A line whose end is not there yet is being written. One that is too long is no entry.
    const std::size_t end = buffer_.rfind('\n');
    if (end != std::string::npos) buffer_.resize(end + 1);
    if (end != std::string::npos || buffer_.size() == bytes_max) {
      offset_ += buffer_.size();
      return std::string_view(buffer_);
    }
    if (!open_next()) return std::string_view();
  }
}

}  // namespace berth::container
