// SimFile and SimDirectory: the simulated twins of File and Directory (async/file.h), made by
// SimHost::open_directory. They keep the promises of that contract and, by seed, nothing more:
//
//   a read that overlaps a write under way sees old and new bytes, sector by sector;
//   operations under way end in any order; two writes to one sector leave either;
//   a failed write may have happened in part;
//   a sync covers what had ended when it was submitted;
//   a buffer that is changed while it is being written leaves either content;
//   list() has no order; the number of a removed file may be given to a new one;
//   a direct file refuses what is not aligned to 4 KiB (EINVAL).
//
// A file of a dead process must not be used any more (CHECK), but may still be destroyed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "async/file.h"
#include "testing/sim_host.h"

namespace berth {

class SimFile final : public File {
 public:
  explicit SimFile(std::shared_ptr<SimDescription> description);
  SimFile(const SimFile&) = delete;
  SimFile& operator=(const SimFile&) = delete;
  ~SimFile() override;

  void submit(FileRequest& request) override;
  Result<std::uint64_t> size() override;
  Result<void> truncate(std::uint64_t size) override;
  Result<FileIdentity> identity() override;
  Result<std::uint64_t> next_data(std::uint64_t offset) override;
  Result<std::uint64_t> next_hole(std::uint64_t offset) override;
  const std::string& name() const override;

 private:
  Result<void> blocking_call(std::uint32_t kind, const char* what, bool changes);

  std::shared_ptr<SimDescription> description_;
};

class SimDirectory final : public Directory {
 public:
  SimDirectory(SimHost& host, SimLoop& loop, std::shared_ptr<SimNode> node, std::string path)
      : host_(host), loop_(loop), node_(std::move(node)), path_(std::move(path)) {}

  Result<std::unique_ptr<File>> open(const std::string& name, OpenOptions options) override;
  Result<std::unique_ptr<Directory>> open_directory(const std::string& name, bool create) override;
  Result<bool> exists(const std::string& name) override;
  Result<void> remove(const std::string& name) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<std::vector<std::string>> list() override;
  Result<void> sync() override;
  const std::string& path() const override { return path_; }

 private:
  std::string path_of(const std::string& name) const {
    return path_.empty() ? name : path_ + "/" + name;
  }
  Result<void> blocking_call(std::uint32_t kind, const char* what, const std::string& path,
                             bool changes);
  /// The entry, or null.
  std::shared_ptr<SimNode> find(const std::string& name) const;

  SimHost& host_;
  SimLoop& loop_;
  std::shared_ptr<SimNode> node_;
  std::string path_;
};

}  // namespace berth
