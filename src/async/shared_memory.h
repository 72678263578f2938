// FileSharedMemoryStore: the real SharedMemoryStore. Sparse files in a directory (of a tmpfs),
// mapped.
//
// Files have mode 0600. Touching a page when the tmpfs is full ends the process (SIGBUS): keep the
// regions far smaller than it. Core dumps leave the regions out.
#pragma once

#include <memory>
#include <string>

#include "async/memory.h"
#include "base/fd.h"

namespace berth {

class FileSharedMemoryStore final : public SharedMemoryStore {
 public:
  /// At an absolute path; the directory and its parents are made where they are missing.
  static Result<std::unique_ptr<FileSharedMemoryStore>> create_at(const std::string& path);

  Result<std::unique_ptr<SharedMemory>> open(const std::string& name) override;
  /// A mapping of the region that it replaces goes on to show that one's bytes.
  Result<std::unique_ptr<SharedMemory>> create(const std::string& name,
                                               std::uint64_t size) override;
  Result<void> remove(const std::string& name) override;
  std::string boot_id() const override { return boot_id_; }

 private:
  FileSharedMemoryStore(Fd directory, std::string path, std::string boot_id)
      : directory_(std::move(directory)), path_(std::move(path)), boot_id_(std::move(boot_id)) {}
  Result<std::string> path_of(const std::string& name) const;

  Fd directory_;
  std::string path_;
  std::string boot_id_;
};

}  // namespace berth
