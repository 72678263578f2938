#include "agent/program/small_files.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace berth::agent {

Result<std::string> read_small_file(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file) return errno_failure(errno, "cannot open " + path);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) return errno_failure(errno, "cannot look at " + path);
  if (!S_ISREG(status.st_mode)) {
    return failure(ErrorKind::precondition, path + " is not a regular file");
  }
  std::string text;
  std::array<char, 16384> buffer{};
  while (true) {
    const ssize_t count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0) return errno_failure(errno, "cannot read " + path);
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (text.size() > small_file_max) {
      return failure(ErrorKind::limit,
                     path + " has more than " + std::to_string(small_file_max) + " bytes");
    }
  }
}

std::string read_line(const std::string& path) {
  auto text = read_small_file(path);
  if (!text) return {};
  while (text->ends_with('\n')) text->pop_back();
  return std::move(*text);
}

Result<void> write_all(int fd, Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0) return errno_failure(errno, "cannot write");
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

Result<void> write_setting(const std::string& path, std::string_view text) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return errno_failure(errno, "cannot open " + path);
  return write_all(file.get(), as_bytes(text));
}

namespace {

/// What most of a clone's files have already.
bool has_just_that(const std::string& path, std::string_view text, mode_t mode) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return false;
  if ((status.st_mode & 07777U) != mode || static_cast<std::size_t>(status.st_size) != text.size())
    return false;
  const auto found = read_small_file(path);
  return found && *found == text;
}

}  // namespace

OwnFile::OwnFile(std::string path, mode_t mode) : path_(std::move(path)), mode_(mode) {}

Result<void> OwnFile::write(std::string_view text, Readers readers) {
  if (readers == Readers::none) {
    if (const auto size = size_there()) return write_in_place(text, *size);
  }
  if (has_just_that(path_, text, mode_)) return {};
  return replace(text);
}

/// Of what has been made, if it is as it was made.
std::optional<std::size_t> OwnFile::size_there() const {
  struct stat ours{};
  struct stat found{};
  if (!made_ || ::fstat(made_.get(), &ours) != 0 || ::lstat(path_.c_str(), &found) != 0)
    return std::nullopt;
  const bool is_ours = found.st_dev == ours.st_dev && found.st_ino == ours.st_ino;
  const bool is_alike = S_ISREG(found.st_mode) && (found.st_mode & 07777U) == mode_ &&
                        found.st_nlink == 1 && found.st_uid == ::geteuid();
  if (!is_ours || !is_alike) return std::nullopt;
  return static_cast<std::size_t>(found.st_size);
}

Result<void> OwnFile::write_in_place(std::string_view text, std::size_t size_before) const {
  if (::lseek(made_.get(), 0, SEEK_SET) != 0) return errno_failure(errno, "cannot write " + path_);
  TRY(write_all(made_.get(), as_bytes(text)));
  if (size_before > text.size() && ::ftruncate(made_.get(), static_cast<off_t>(text.size())) != 0) {
    return errno_failure(errno, "cannot write " + path_);
  }
  return {};
}

Result<void> OwnFile::replace(std::string_view text) {
  made_.reset();
  const std::string made = path_ + ".berth-new";
  ::unlink(made.c_str());
  constexpr int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  Fd file(::open(made.c_str(), flags, mode_));
  if (!file && errno == ENOENT) {
    ::mkdir(path_.substr(0, path_.rfind('/')).c_str(), 0755);
    file = Fd(::open(made.c_str(), flags, mode_));
  }
  if (!file) return errno_failure(errno, "cannot make " + made);
  ::fchmod(file.get(), mode_);
  TRY(write_all(file.get(), as_bytes(text)));
  if (std::rename(made.c_str(), path_.c_str()) != 0) {
    const int why = errno;
    ::unlink(made.c_str());
    return errno_failure(why, "cannot replace " + path_);
  }
  made_ = std::move(file);
  return {};
}

}  // namespace berth::agent
