#include "agent/program/archive.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/protocol.h"
#include "base/fd.h"

namespace berth::agent {
namespace {

constexpr std::size_t input_block = std::size_t{64} << 10;
constexpr std::size_t output_block = 10240;  // tar's own

struct Free {
  void operator()(archive* handle) const { archive_free(handle); }
  void operator()(archive_entry* entry) const { archive_entry_free(entry); }
  void operator()(archive_entry_linkresolver* links) const {
    archive_entry_linkresolver_free(links);
  }
};
using Archive = std::unique_ptr<archive, Free>;
using Entry = std::unique_ptr<archive_entry, Free>;
using Links = std::unique_ptr<archive_entry_linkresolver, Free>;

/// What libarchive says; `otherwise` where the system had no part in it.
std::unexpected<Error> error_of(archive* handle, const std::string& doing, ErrorKind otherwise) {
  const int number = archive_errno(handle);
  const char* text = archive_error_string(handle);
  std::string what = doing + ": " + (text != nullptr ? text : "no reason is given");
  // EILSEQ: the format is wrong, and -1: anything else of its own.
  const bool is_systems = number > 0 && number != EILSEQ;
  const ErrorKind kind = is_systems ? Error::from_errno(number, "").kind() : otherwise;
  return failure(kind, std::move(what));
}

std::string name_of(archive_entry* entry) {
  const char* name = archive_entry_pathname(entry);
  return name != nullptr ? name : "a file";
}

// pack()

/// A hole is as many zeros: a file's bytes are all in it.
Result<void> write_zeros(archive* output, std::int64_t count) {
  static constexpr std::array<char, 4096> zeros{};
  while (count > 0) {
    const auto most = static_cast<std::size_t>(std::min<std::int64_t>(count, zeros.size()));
    const la_ssize_t written = archive_write_data(output, zeros.data(), most);
    if (written <= 0) return error_of(output, "cannot send the archive", ErrorKind::io_error);
    count -= written;
  }
  return {};
}

Result<void> pack_content(archive* disk, archive* output, archive_entry* entry) {
  const std::int64_t size = archive_entry_size(entry);
  std::int64_t position = 0;
  while (true) {
    const void* block = nullptr;
    std::size_t length = 0;
    la_int64_t offset = 0;
    const int status = archive_read_data_block(disk, &block, &length, &offset);
    if (status == ARCHIVE_EOF) break;
    if (status < ARCHIVE_WARN) {
      return error_of(disk, "cannot read " + name_of(entry), ErrorKind::io_error);
    }
    TRY(write_zeros(output, offset - position));
    position = std::max<std::int64_t>(position, offset);
    // A file that has grown since it was looked at is as long as it was.
    const auto left = static_cast<std::size_t>(std::max<std::int64_t>(size - position, 0));
    length = std::min(length, left);
    for (const char* next = static_cast<const char*>(block); length > 0;) {
      const la_ssize_t written = archive_write_data(output, next, length);
      if (written <= 0) return error_of(output, "cannot send the archive", ErrorKind::io_error);
      next += written;
      position += written;
      length -= static_cast<std::size_t>(written);
    }
  }
  return write_zeros(output, size - position);
}

Result<void> pack_entry(archive* disk, archive* output, archive_entry* entry) {
  const int status = archive_write_header(output, entry);
  // A socket has no place in a tar.
  if (status == ARCHIVE_FAILED && archive_entry_filetype(entry) == AE_IFSOCK) return {};
  if (status < ARCHIVE_WARN) {
    return error_of(output, "cannot send " + name_of(entry), ErrorKind::io_error);
  }
  if (archive_entry_size(entry) > 0) TRY(pack_content(disk, output, entry));
  return {};
}

/// The name in the directory that becomes ours.
Result<std::string> enter_parent(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const std::size_t slash = path.rfind('/');
  const std::string parent = path.substr(0, slash + 1);
  std::string name = path.substr(slash + 1);
  if (name.empty()) name = ".";
  if (name == "..") {
    return failure(ErrorKind::invalid_argument, "'" + path + "' has no name of its own");
  }
  if (::chdir(parent.c_str()) != 0) return errno_failure(errno, "cannot change to " + parent);
  struct stat status{};
  if (::lstat(name.c_str(), &status) != 0) return errno_failure(errno, "cannot look at " + path);
  return name;
}

Result<void> pack_tree(archive* disk, archive* output) {
  const Links links(archive_entry_linkresolver_new());
  const Entry entry(archive_entry_new());
  if (!links || !entry) return failure(ErrorKind::limit, "there is no memory for an archive");
  archive_entry_linkresolver_set_strategy(links.get(), ARCHIVE_FORMAT_TAR_PAX_RESTRICTED);
  while (true) {
    archive_entry_clear(entry.get());
    const int status = archive_read_next_header2(disk, entry.get());
    if (status == ARCHIVE_EOF) return {};
    if (status < ARCHIVE_WARN) {
      if (status != ARCHIVE_FATAL && archive_errno(disk) == ENOENT) continue;
      return error_of(disk, "cannot read " + name_of(entry.get()), ErrorKind::io_error);
    }
    if (archive_read_disk_current_filesystem_is_synthetic(disk) != 1)
      archive_read_disk_descend(disk);
    // With this strategy a link is complete by itself, and nothing is held back.
    archive_entry* next = entry.get();
    archive_entry* held = nullptr;
    archive_entry_linkify(links.get(), &next, &held);
    if (next != nullptr) TRY(pack_entry(disk, output, next));
  }
}

// unpack()

Result<void> enter_directory(const std::string& path) {
  const Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) {
    if (errno == ENOTDIR) return failure(ErrorKind::precondition, path + " is not a directory");
    return errno_failure(errno, "cannot open " + path);
  }
  // Whatever a name or a link in it may say, nothing is outside.
  if (::fchdir(directory.get()) != 0 || ::chroot(".") != 0 || ::chdir("/") != 0) {
    return errno_failure(errno, "cannot enter " + path);
  }
  return {};
}

Result<void> unpack_content(archive* input, archive* disk, archive_entry* entry) {
  while (true) {
    const void* block = nullptr;
    std::size_t length = 0;
    la_int64_t offset = 0;
    const int status = archive_read_data_block(input, &block, &length, &offset);
    if (status == ARCHIVE_EOF) return {};
    if (status < ARCHIVE_WARN) {
      return error_of(input, "cannot read " + name_of(entry), ErrorKind::corrupt);
    }
    if (archive_write_data_block(disk, block, length, offset) < ARCHIVE_WARN) {
      return error_of(disk, "cannot write " + name_of(entry), ErrorKind::io_error);
    }
  }
}

Result<void> unpack_tree(archive* input, archive* disk) {
  while (true) {
    archive_entry* entry = nullptr;
    const int status = archive_read_next_header(input, &entry);
    if (status == ARCHIVE_EOF) break;
    if (status < ARCHIVE_WARN)
      return error_of(input, "cannot read the archive", ErrorKind::corrupt);
    if (archive_write_header(disk, entry) < ARCHIVE_WARN) {
      return error_of(disk, "cannot make " + name_of(entry), ErrorKind::invalid_argument);
    }
    if (archive_entry_size(entry) > 0) TRY(unpack_content(input, disk, entry));
    if (archive_write_finish_entry(disk) < ARCHIVE_WARN) {
      return error_of(disk, "cannot finish " + name_of(entry), ErrorKind::io_error);
    }
  }
  if (archive_write_close(disk) < ARCHIVE_WARN) {
    return error_of(disk, "cannot finish the directories", ErrorKind::io_error);
  }
  return {};
}

Result<void> read_to_the_end(int input) {
  std::array<char, 4096> buffer{};
  while (true) {
    const ssize_t count = ::read(input, buffer.data(), buffer.size());
    if (count < 0) return errno_failure(errno, "cannot read the archive");
    if (count == 0) return {};
  }
}

}  // namespace

Result<void> pack(const std::string& path, int output) {
  const std::string name = TRY(enter_parent(path));
  const Archive disk(archive_read_disk_new());
  const Archive tar(archive_write_new());
  if (!disk || !tar) return failure(ErrorKind::limit, "there is no memory for an archive");
  archive_read_disk_set_symlink_physical(disk.get());
  archive_read_disk_set_behavior(disk.get(), ARCHIVE_READDISK_NO_ACL | ARCHIVE_READDISK_NO_FFLAGS);
  archive_write_set_format_pax_restricted(tar.get());
  // Names are bytes; which characters they are is not known here.
  archive_write_set_options(tar.get(), "hdrcharset=BINARY");
  archive_write_set_bytes_per_block(tar.get(), output_block);
  if (archive_write_open_fd(tar.get(), output) < ARCHIVE_WARN) {
    return error_of(tar.get(), "cannot begin the archive", ErrorKind::io_error);
  }
  if (archive_read_disk_open(disk.get(), name.c_str()) < ARCHIVE_WARN) {
    return error_of(disk.get(), "cannot open " + path, ErrorKind::io_error);
  }
  TRY(pack_tree(disk.get(), tar.get()));
  if (archive_write_close(tar.get()) < ARCHIVE_WARN) {
    return error_of(tar.get(), "cannot send the archive", ErrorKind::io_error);
  }
  return {};
}

Result<void> unpack(const std::string& directory, std::uint64_t flags, int input) {
  TRY(enter_directory(directory));
  const Archive tar(archive_read_new());
  const Archive disk(archive_write_disk_new());
  if (!tar || !disk) return failure(ErrorKind::limit, "there is no memory for an archive");
  archive_read_support_format_tar(tar.get());
  int options = ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_XATTR |
                ARCHIVE_EXTRACT_SECURE_NODOTDOT | ARCHIVE_EXTRACT_SECURE_SYMLINKS |
                ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS;
  if ((flags & archive_keep_owners) != 0) options |= ARCHIVE_EXTRACT_OWNER;
  archive_write_disk_set_options(disk.get(), options);
  if (archive_read_open_fd(tar.get(), input, input_block) < ARCHIVE_WARN) {
    return error_of(tar.get(), "cannot read the archive", ErrorKind::corrupt);
  }
  TRY(unpack_tree(tar.get(), disk.get()));
  return read_to_the_end(input);
}

}  // namespace berth::agent
