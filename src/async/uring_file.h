// The real File and Directory: Linux files and block devices, their reads and writes through
// io_uring.
//
// New files have mode 0600, new directories 0700: disks are secrets. Names are single path
// components. A name may be a symbolic link to a file or block device elsewhere (an adopted disk);
// open() follows it, and does not create what a dangling one points to.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "async/file.h"
#include "async/uring_loop.h"
#include "base/fd.h"

namespace berth {

class UringFile final : public File {
 public:
  /// Operations of one file in the kernel at one time; more wait in order (FileRequest::next).
  static constexpr std::size_t operations_max = 1024;

  /// What somebody else has opened; `name` is for messages. invalid_argument unless a file or block
  /// device.
  static Result<std::unique_ptr<UringFile>> adopt(UringLoop& loop, Fd fd, std::string name);
  ~UringFile() override;

  void submit(FileRequest& request) override;
  Result<std::uint64_t> size() override;
  /// A block device keeps its size: unsupported for any other.
  Result<void> truncate(std::uint64_t size) override;
  /// Of a block device: its size and device_id alone, since the rest changes with every boot.
  Result<FileIdentity> identity() override;
  Result<std::uint64_t> next_data(std::uint64_t offset) override;
  Result<std::uint64_t> next_hole(std::uint64_t offset) override;
  const std::string& name() const override;

  /// Whether it was opened with O_DIRECT.
  bool direct() const;

 private:
  class Operation;
  struct State;
  UringFile(UringLoop& loop, Fd fd, std::string name);
  Result<std::uint64_t> seek(std::uint64_t offset, int whence);

  std::unique_ptr<State> state_;  // outlives this while I/O is under way
};

class UringDirectory final : public Directory {
 public:
  /// Also: invalid_argument for what is neither a file nor a block device. `lock` on a block device
  /// is also refused (in_use) while it is mounted or otherwise claimed (O_EXCL).
  Result<std::unique_ptr<File>> open(const std::string& name, OpenOptions options) override;
  Result<std::unique_ptr<Directory>> open_directory(const std::string& name, bool create) override;
  /// A dangling symbolic link exists.
  Result<bool> exists(const std::string& name) override;
  /// A file, a link, or an empty directory.
  Result<void> remove(const std::string& name) override;
  /// Replaces a file called `to`.
  Result<void> rename(const std::string& from, const std::string& to) override;
  /// In the order of their bytes.
  Result<std::vector<std::string>> list() override;
  Result<void> sync() override;
  const std::string& path() const override { return path_; }

 private:
  friend Result<std::unique_ptr<Directory>> open_directory(UringLoop& loop, const std::string& path,
                                                           bool create);
  UringDirectory(UringLoop& loop, Fd fd, std::string path)
      : loop_(loop), fd_(std::move(fd)), path_(std::move(path)) {}
  Result<std::string> path_of(const std::string& name) const;

  UringLoop& loop_;
  Fd fd_;
  std::string path_;
};

/// The directory at an absolute path. `create` makes it and its parents, durably, where they are
/// missing. Blocking.
Result<std::unique_ptr<Directory>> open_directory(UringLoop& loop, const std::string& path,
                                                  bool create);

}  // namespace berth
