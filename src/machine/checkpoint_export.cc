#include "machine/checkpoint_export.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/uring_file.h"
#include "base/aligned_buffer.h"
#include "machine/extent_copy.h"
#include "machine/extent_source.h"

namespace berth::machine {
namespace {

constexpr std::size_t list_buffer_size = 1 * MiB;

/// Gives `from` the name `to`, if nothing has it: already_exists.
Result<void> rename_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return {};
  // Not every file system knows the flag. A link is as good, and gives way to nobody either.
  if (errno == EINVAL && ::link(from.c_str(), to.c_str()) == 0) {
    if (::unlink(from.c_str()) == 0) return {};
  }
  return errno_failure(errno, fmt::format("cannot give '{}' its name", to));
}

class CheckpointBytes final : public ByteSource {
 public:
  explicit CheckpointBytes(disk::CheckpointReader& reader) : reader_(reader) {}
  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    return reader_.read(offset, into);
  }

 private:
  disk::CheckpointReader& reader_;
};

/// The whole of one export: names, files and their order.
class CheckpointExporter {
 public:
  CheckpointExporter(UringLoop& loop, disk::Volume& volume, CheckpointExportRequest request,
                     JobObserver& observer)
      : loop_(loop), volume_(volume), request_(std::move(request)), observer_(observer) {
    const std::filesystem::path path(request_.to);
    parent_ = path.parent_path();
    name_ = path.filename();
    partial_ = name_ + ".partial";
    list_ = name_ + ".extents.json";
  }

  Task<Result<CheckpointExportOutcome>> run() {
    reader_ = CO_TRY(volume_.read_checkpoint(request_.checkpoint));
    directory_ = CO_TRY(open_directory(loop_, parent_, false));
    const bool exists = CO_TRY(directory_->exists(name_));
    if (request_.since.empty()) {
      if (exists) {
        co_return failure(
            ErrorKind::already_exists,
            fmt::format("'{}' exists: remove it, or choose another name", request_.to));
      }
      co_return co_await write_new();
    }
    if (exists) co_return co_await patch();
    co_return co_await write_new();
  }

 private:
  std::unique_ptr<ExtentSource> source() {
    if (request_.since.empty()) return data_of(*reader_);
    disk::ChangesRequest changes;
    changes.since = request_.since;
    changes.nonce = request_.nonce;
    changes.until = request_.checkpoint;
    return changes_of(volume_, std::move(changes));
  }

  Task<Result<CheckpointExportOutcome>> count() {
    CheckpointExportOutcome counted;
    const auto extents = source();
    while (const auto extent = CO_TRY(co_await extents->next())) {
      CO_TRY(observer_.check());
      ++counted.extents;
      counted.bytes += extent->length;
    }
    counted.exact = extents->exact();
    co_return counted;
  }

  /// Locked, so that two exports to one file do not mix.
  Result<std::unique_ptr<File>> open_target(const std::string& name, bool create) {
    const bool direct = reader_->info().size % AlignedBuffer::alignment == 0;
    auto file = TRY(directory_->open(name, {.create = create, .direct = direct, .lock = true}));
    if (create) TRY(file->truncate(0));
    if (TRY(file->size()) != reader_->info().size) TRY(file->truncate(reader_->info().size));
    return file;
  }

  Task<Result<CheckpointExportOutcome>> copy_to(File& file, bool clear_zeros) {
    CopyOptions options{
        .clear_zeros = clear_zeros, .total = reader_->info().size, .count_gaps = true};
    if (!request_.since.empty()) {
      options.total = CO_TRY(co_await count()).bytes;
      options.count_gaps = false;
    }
    CheckpointBytes bytes(*reader_);
    const auto extents = source();
    const auto copied =
        CO_TRY(co_await copy_extents(loop_, bytes, *extents, file, observer_, options));
    observer_.report({.phase = "sync", .done = options.total, .total = options.total});
    CO_TRY(co_await file.sync());
    co_return CheckpointExportOutcome{
        .extents = copied.extents, .bytes = copied.bytes, .exact = extents->exact()};
  }

  Task<Result<CheckpointExportOutcome>> patch() {
    const auto file = CO_TRY(open_target(name_, false));
    auto outcome = co_await copy_to(*file, true);
    if (outcome) co_return outcome;
    co_return failure(std::move(outcome).error().with_context(
        fmt::format("'{}' is patched in part; repeat the export to complete it", request_.to)));
  }

  Task<Result<CheckpointExportOutcome>> write_new() {
    auto file = CO_TRY(open_target(partial_, true));
    auto outcome = co_await finish_new(*file);
    // The lock goes after the name, so that nobody else's file can be the one removed.
    if (!outcome) (void)directory_->remove(partial_);
    co_return outcome;
  }

  Task<Result<CheckpointExportOutcome>> finish_new(File& file) {
    const auto outcome = CO_TRY(co_await copy_to(file, false));
    // First the list, then the file: a file without a list is a whole disk.
    if (!request_.since.empty()) CO_TRY(co_await write_list(outcome));
    auto renamed = rename_new(parent_ + '/' + partial_, request_.to);
    if (!renamed) {
      if (!request_.since.empty()) (void)directory_->remove(list_);
      co_return failure(std::move(renamed).error());
    }
    CO_TRY(directory_->sync());
    co_return outcome;
  }

  std::string list_head(const CheckpointExportOutcome& outcome) {
    Id128 nonce;
    for (const auto& refpoint : volume_.refpoints()) {
      if (refpoint.name == request_.since) nonce = refpoint.nonce;
    }
    const Json head = {{"format", "berth-extents"},
                       {"version", 1},
                       {"volume", volume_.info().id.to_string()},
                       {"checkpoint", request_.checkpoint},
                       {"since", request_.since},
                       {"nonce", nonce.to_string()},
                       {"size", reader_->info().size},
                       {"exact", outcome.exact}};
    std::string text = format_json(head);
    text.pop_back();  // the closing brace
    return text + ", \"extents\": [";
  }

  Task<Result<void>> write_list(const CheckpointExportOutcome& outcome) {
    const std::string partial = list_ + ".partial";
    auto written = co_await write_list_to(partial, outcome);
    if (written) written = directory_->rename(partial, list_);
    if (!written) {
      (void)directory_->remove(partial);
      co_return written;
    }
    co_return directory_->sync();
  }

  Task<Result<void>> write_list_to(std::string name, CheckpointExportOutcome outcome) {
    const auto file = CO_TRY(directory_->open(name, {.create = true, .lock = true}));
    CO_TRY(file->truncate(0));
    std::string text = list_head(outcome);
    std::uint64_t offset = 0;
    const auto extents = source();
    bool first = true;
    while (const auto extent = CO_TRY(co_await extents->next())) {
      text += fmt::format("{}[{}, {}]", first ? "\n" : ",\n", extent->offset, extent->length);
      first = false;
      if (text.size() < list_buffer_size) continue;
      CO_TRY(observer_.check());
      CO_TRY(co_await file->write(offset, as_bytes(text)));
      offset += text.size();
      text.clear();
    }
    text += "\n]}\n";
    CO_TRY(co_await file->write(offset, as_bytes(text)));
    CO_TRY(co_await file->sync());
    co_return Result<void>{};
  }

  UringLoop& loop_;
  disk::Volume& volume_;
  const CheckpointExportRequest request_;
  JobObserver& observer_;
  std::string parent_;
  std::string name_;
  std::string partial_;
  std::string list_;
  std::unique_ptr<disk::CheckpointReader> reader_;
  std::unique_ptr<Directory> directory_;
};

}  // namespace

Task<Result<CheckpointExportOutcome>> export_checkpoint(UringLoop& loop, disk::Volume& volume,
                                                        CheckpointExportRequest request,
                                                        JobObserver& observer) {
  CheckpointExporter exporter(loop, volume, std::move(request), observer);
  auto outcome = co_await exporter.run();
  if (outcome) co_return outcome;
  co_return failure(std::move(outcome).error().with_context("cannot export the checkpoint"));
}

}  // namespace berth::machine
