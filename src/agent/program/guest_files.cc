#include "agent/program/guest_files.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

namespace berth::agent {
namespace {

constexpr std::uint64_t file_size_max = std::uint64_t{1} << 62;
constexpr std::uint64_t unchanged = UINT32_MAX;  // an owner, to chown(2)

Result<std::string> read_path(const Fields& fields) {
  std::string path = TRY(fields.text(Tag::path));
  if (!path.starts_with('/')) {
    return failure(ErrorKind::invalid_argument, "'" + path + "' is not an absolute path");
  }
  return path;
}

Result<std::uint64_t> read_offset(const Fields& fields) {
  const std::uint64_t offset = TRY(fields.number_or(Tag::offset, 0));
  if (offset > file_size_max) return failure(ErrorKind::limit, "no file is so long");
  return offset;
}

/// A FIFO or a device would have us wait.
Result<struct stat> look_at(const Fd& file, const std::string& path) {
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) return errno_failure(errno, "cannot look at " + path);
  if (!S_ISREG(status.st_mode)) {
    return failure(ErrorKind::precondition, path + " is not a regular file");
  }
  return status;
}

}  // namespace

Result<void> write_file_piece(const Fields& fields) {
  const std::string path = TRY(read_path(fields));
  std::uint64_t offset = TRY(read_offset(fields));
  const std::uint64_t flags = TRY(fields.number_or(Tag::flags, 0));
  const std::uint64_t owner = TRY(fields.number_or(Tag::owner, unchanged));
  const std::uint64_t group = TRY(fields.number_or(Tag::group, unchanged));
  const std::uint64_t mode = TRY(fields.number_or(Tag::mode, 0644));
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                       static_cast<mode_t>(mode & 07777)));
  if (!file) return errno_failure(errno, "cannot open " + path);
  TRY(look_at(file, path));
  if ((flags & file_truncate) != 0 && ::ftruncate(file.get(), 0) != 0) {
    return errno_failure(errno, "cannot empty " + path);
  }
  Bytes content = fields.raw(Tag::content);
  while (!content.empty()) {
    const ssize_t count =
        ::pwrite(file.get(), content.data(), content.size(), static_cast<off_t>(offset));
    if (count < 0) return errno_failure(errno, "cannot write " + path);
    offset += static_cast<std::uint64_t>(count);
    content = content.subspan(static_cast<std::size_t>(count));
  }
  if ((owner != unchanged || group != unchanged) &&
      ::fchown(file.get(), static_cast<uid_t>(owner), static_cast<gid_t>(group)) != 0) {
    return errno_failure(errno, "cannot give away " + path);
  }
  // After the owner, whose change takes the set-user-ID bit away.
  if (fields.has(Tag::mode) && ::fchmod(file.get(), static_cast<mode_t>(mode & 07777)) != 0) {
    return errno_failure(errno, "cannot change the mode of " + path);
  }
  return {};
}

Result<void> read_file_piece(const Fields& fields, FieldWriter& answer) {
  const std::string path = TRY(read_path(fields));
  const std::uint64_t offset = TRY(read_offset(fields));
  const std::uint64_t length =
      std::min<std::uint64_t>(TRY(fields.number_or(Tag::length, file_piece_max)), file_piece_max);
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file) return errno_failure(errno, "cannot open " + path);
  const struct stat status = TRY(look_at(file, path));
  std::vector<std::byte> content(length);
  std::size_t have = 0;
  while (have < length) {
    const ssize_t count = ::pread(file.get(), content.data() + have, content.size() - have,
                                  static_cast<off_t>(offset + have));
    if (count < 0) return errno_failure(errno, "cannot read " + path);
    if (count == 0) break;
    have += static_cast<std::size_t>(count);
  }
  answer.number(Tag::size, static_cast<std::uint64_t>(status.st_size))
      .number(Tag::mode, status.st_mode & 07777U)
      .number(Tag::owner, status.st_uid)
      .number(Tag::group, status.st_gid)
      .raw(Tag::content, Bytes(content).first(have));
  return {};
}

}  // namespace berth::agent
