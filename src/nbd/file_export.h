// FileExport: a File as it is, every byte of it: no tracking, no copies. What a raw disk costs over
// NBD.
//
// On the file's loop. Writes are durable after flush(), or with force_unit_access.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "async/file.h"
#include "nbd/export.h"

namespace berth::nbd {

class FileExport final : public Export {
 public:
  struct Options {
    std::string name;
    bool read_only = false;
    std::uint32_t block_minimum = 1;  // bytes; 4096 for a file that was opened with `direct`
  };
  /// Its size is the file's present one, in whole blocks.
  static Result<std::shared_ptr<FileExport>> create(std::unique_ptr<File> file, Options options);

  const ExportInfo& info() const override { return info_; }
  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override;
  Task<Result<void>> write(std::uint64_t offset, Bytes from, bool force_unit_access) override;
  Task<Result<void>> flush() override;
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length,
                             bool force_unit_access) override;
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, ZeroOptions options) override;
  Task<Result<std::vector<StatusExtent>>> block_status(std::string context, std::uint64_t offset,
                                                       std::uint64_t length,
                                                       std::size_t extents_max) override;

 private:
  FileExport(std::unique_ptr<File> file, ExportInfo info)
      : file_(std::move(file)), info_(std::move(info)) {}

  std::unique_ptr<File> file_;
  ExportInfo info_;
};

}  // namespace berth::nbd
