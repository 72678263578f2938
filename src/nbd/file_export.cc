#include "nbd/file_export.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/units.h"

namespace berth::nbd {

Result<std::shared_ptr<FileExport>> FileExport::create(std::unique_ptr<File> file,
                                                       Options options) {
  ExportInfo info;
  info.name = std::move(options.name);
  info.size = round_down(TRY(file->size()), options.block_minimum);
  info.read_only = options.read_only;
  info.block_minimum = options.block_minimum;
  info.block_preferred = std::max<std::uint32_t>(options.block_minimum, 4 * KiB);
  return std::shared_ptr<FileExport>(new FileExport(std::move(file), std::move(info)));
}

Task<Result<void>> FileExport::read(std::uint64_t offset, MutableBytes into) {
  const std::size_t got = CO_TRY(co_await file_->read(offset, into));
  std::ranges::fill(into.subspan(got), std::byte{0});  // somebody has made the file shorter
  co_return Result<void>{};
}

Task<Result<void>> FileExport::write(std::uint64_t offset, Bytes from, bool force_unit_access) {
  CO_TRY(co_await file_->write(offset, from));
  if (force_unit_access) CO_TRY(co_await file_->sync());
  co_return Result<void>{};
}

Task<Result<void>> FileExport::flush() { co_return co_await file_->sync(); }

Task<Result<void>> FileExport::discard(std::uint64_t offset, std::uint64_t length,
                                       bool force_unit_access) {
  CO_TRY(co_await file_->punch(offset, length));
  if (force_unit_access) CO_TRY(co_await file_->sync());
  co_return Result<void>{};
}

Task<Result<void>> FileExport::zero(std::uint64_t offset, std::uint64_t length,
                                    ZeroOptions options) {
  if (options.keep_allocated) {
    CO_TRY(co_await file_->zero(offset, length));
  } else {
    CO_TRY(co_await file_->punch(offset, length));
  }
  if (options.force_unit_access) CO_TRY(co_await file_->sync());
  co_return Result<void>{};
}

Task<Result<std::vector<StatusExtent>>> FileExport::block_status(std::string context,
                                                                 std::uint64_t offset,
                                                                 std::uint64_t length,
                                                                 std::size_t extents_max) {
  if (context != base_allocation) {
    co_return failure(ErrorKind::not_found,
                      fmt::format("export '{}' has no context '{}'", info_.name, context));
  }
  std::vector<StatusExtent> extents;
  const std::uint64_t end = offset + length;
  std::uint64_t at = offset;
  while (at < end && extents.size() < extents_max) {
    const std::uint64_t data = std::min(end, CO_TRY(file_->next_data(at)));
    const bool hole = data > at;
    const std::uint64_t next = hole ? data : std::min(end, CO_TRY(file_->next_hole(at)));
    // A file that changes meanwhile may give no way on; the rest is data then.
    const std::uint64_t until = next > at ? next : end;
    extents.push_back({.length = until - at, .flags = hole ? status_hole | status_zero : 0});
    at = until;
  }
  co_return extents;
}

}  // namespace berth::nbd
