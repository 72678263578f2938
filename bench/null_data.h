// A directory whose file "data" is nothing: writes end at once, reads give one byte again and
// again. What an engine costs beside its I/O shows on it, and a disk of any size fits. Every other
// name is a real file. Lives on one loop; outlives the files that it opens.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "async/file.h"
#include "async/loop.h"

namespace berth::bench {

class NullFile final : public File {
 public:
  NullFile(Loop& loop, std::uint64_t& size, std::byte content)
      : loop_(loop), size_(size), content_(content) {}

  void submit(FileRequest& request) override {
    if (request.kind == FileRequest::Kind::read) {
      std::memset(request.data, std::to_integer<int>(content_), request.length);
    }
    request.result = static_cast<std::int64_t>(request.length);
    loop_.post(request.waiter);
  }
  Result<std::uint64_t> size() override { return size_; }
  Result<void> truncate(std::uint64_t size) override {
    size_ = size;
    return {};
  }
  Result<FileIdentity> identity() override {
    return FileIdentity{.size = size_, .inode = 1, .device_id = {}};
  }
  Result<std::uint64_t> next_data(std::uint64_t offset) override { return offset; }
  Result<std::uint64_t> next_hole(std::uint64_t /*offset*/) override { return size_; }
  const std::string& name() const override { return name_; }

 private:
  Loop& loop_;
  std::uint64_t& size_;
  std::byte content_;
  std::string name_ = "null data";
};

class NullDataDirectory final : public Directory {
 public:
  NullDataDirectory(Loop& loop, std::unique_ptr<Directory> files, std::byte content)
      : loop_(loop), files_(std::move(files)), content_(content) {}

  Result<std::unique_ptr<File>> open(const std::string& name, OpenOptions options) override {
    if (name == "data") return std::make_unique<NullFile>(loop_, data_size_, content_);
    return files_->open(name, options);
  }
  Result<std::unique_ptr<Directory>> open_directory(const std::string& name, bool create) override {
    return files_->open_directory(name, create);
  }
  Result<bool> exists(const std::string& name) override { return files_->exists(name); }
  Result<void> remove(const std::string& name) override { return files_->remove(name); }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return files_->rename(from, to);
  }
  Result<std::vector<std::string>> list() override { return files_->list(); }
  Result<void> sync() override { return files_->sync(); }
  const std::string& path() const override { return files_->path(); }

 private:
  Loop& loop_;
  std::unique_ptr<Directory> files_;
  std::uint64_t data_size_ = 0;  // bytes
  std::byte content_;
};

}  // namespace berth::bench
