#include "machine/volume_export.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace berth::machine {
namespace {

constexpr const char* live_description = "the live disk";

std::string description_of(std::string_view checkpoint) {
  return fmt::format("the checkpoint '{}'", checkpoint);
}

constexpr std::uint32_t changed_flag = 1;  // bit 0 of the contexts of changes

std::vector<nbd::StatusExtent> status_of_allocation(
    const std::vector<disk::AllocationExtent>& extents) {
  std::vector<nbd::StatusExtent> status;
  status.reserve(extents.size());
  for (const auto& extent : extents) {
    const std::uint32_t flags =
        (extent.hole ? nbd::status_hole : 0) | (extent.zero ? nbd::status_zero : 0);
    status.push_back({.length = extent.length, .flags = flags});
  }
  return status;
}

std::vector<std::string> contexts_of(const disk::Volume& volume, disk::Epoch until) {
  std::vector<std::string> contexts;
  for (const auto& refpoint : volume.refpoints()) {
    if (refpoint.provisional || refpoint.epoch > until) continue;
    contexts.push_back(fmt::format("{}{}", changed_context_prefix, refpoint.name));
    contexts.push_back(fmt::format("{}{}", dirty_bitmap_context_prefix, refpoint.name));
  }
  return contexts;
}

/// The reference point that a context names, or "".
std::string refpoint_of(std::string_view context) {
  for (const std::string_view prefix : {changed_context_prefix, dirty_bitmap_context_prefix}) {
    if (context.starts_with(prefix)) return std::string(context.substr(prefix.size()));
  }
  return {};
}

Task<Result<std::vector<nbd::StatusExtent>>> changes_status(disk::Volume& volume,
                                                            std::string context, std::string until,
                                                            disk::Extent range,
                                                            std::size_t extents_max) {
  const std::string refpoint = refpoint_of(context);
  if (refpoint.empty()) {
    co_return failure(ErrorKind::invalid_argument,
                      fmt::format("there is no metadata context '{}'", context));
  }
  disk::ChangesRequest request;
  request.since = refpoint;
  request.until = std::move(until);
  request.offset = range.offset;
  request.length = range.length;
  request.extents_max = extents_max / 2 + 1;  // between two changed runs lies an unchanged one
  const disk::ChangesPage page = CO_TRY(co_await volume.changes(std::move(request)));
  co_return status_of_changes(page, range, extents_max);
}

class LiveExport final : public nbd::Export {
 public:
  LiveExport(disk::Volume& volume, std::string name, bool read_only) : volume_(volume) {
    const disk::VolumeInfo volume_info = volume.info();
    info_.name = std::move(name);
    info_.description = live_description;
    info_.size = volume_info.size;
    info_.read_only = read_only;
    info_.block_preferred = volume_info.block_size;
    info_.contexts = contexts_of(volume, disk::epoch_max);
  }

  const nbd::ExportInfo& info() const override { return info_; }

  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    return volume_.read(offset, into);
  }

  Task<Result<void>> write(std::uint64_t offset, Bytes from, bool force_unit_access) override {
    if (force_unit_access) return write_through(offset, from);
    return info_.read_only ? refuse() : volume_.write(offset, from);
  }

  Task<Result<void>> flush() override { return volume_.flush(); }

  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length,
                             bool force_unit_access) override {
    if (info_.read_only) co_return read_only_error();
    CO_TRY(co_await volume_.discard(offset, length));
    if (force_unit_access) CO_TRY(co_await volume_.flush());
    co_return Result<void>{};
  }

  // keep_allocated asks for nothing here: a volume is thin, and never promises space.
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length,
                          nbd::ZeroOptions options) override {
    if (info_.read_only) co_return read_only_error();
    CO_TRY(co_await volume_.zero(offset, length, options.fast_only));
    if (options.force_unit_access) CO_TRY(co_await volume_.flush());
    co_return Result<void>{};
  }

  Task<Result<std::vector<nbd::StatusExtent>>> block_status(std::string context,
                                                            std::uint64_t offset,
                                                            std::uint64_t length,
                                                            std::size_t extents_max) override {
    if (context != nbd::base_allocation) {
      co_return co_await changes_status(volume_, std::move(context), "", {offset, length},
                                        extents_max);
    }
    co_return status_of_allocation(
        CO_TRY(co_await volume_.allocation(offset, length, extents_max)));
  }

 private:
  std::unexpected<Error> read_only_error() const {
    return failure(ErrorKind::read_only, fmt::format("the export '{}' is read-only", info_.name));
  }
  Task<Result<void>> refuse() { co_return read_only_error(); }

  Task<Result<void>> write_through(std::uint64_t offset, Bytes from) {
    if (info_.read_only) co_return read_only_error();
    CO_TRY(co_await volume_.write(offset, from));
    CO_TRY(co_await volume_.flush());
    co_return Result<void>{};
  }

  disk::Volume& volume_;
  nbd::ExportInfo info_;
};

class CheckpointExport final : public nbd::Export {
 public:
  CheckpointExport(disk::Volume& volume, std::string name,
                   std::unique_ptr<disk::CheckpointReader> reader,
                   std::shared_ptr<CheckpointReaders> readers)
      : volume_(volume),
        reader_(std::move(reader)),
        checkpoint_(reader_->info().name),
        readers_(std::move(readers)) {
    info_.name = std::move(name);
    info_.description = description_of(checkpoint_);
    info_.size = reader_->info().size;
    info_.read_only = true;
    info_.can_discard = false;
    info_.can_zero = false;
    info_.can_fast_zero = false;
    info_.block_preferred = volume.info().block_size;
    info_.contexts = contexts_of(volume, reader_->info().epoch);
    ++(*readers_)[checkpoint_];
  }
  CheckpointExport(const CheckpointExport&) = delete;
  CheckpointExport& operator=(const CheckpointExport&) = delete;
  ~CheckpointExport() override {
    const auto entry = readers_->find(checkpoint_);
    if (--entry->second == 0) readers_->erase(entry);
  }

  const nbd::ExportInfo& info() const override { return info_; }

  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    return reader_->read(offset, into);
  }
  Task<Result<void>> write(std::uint64_t /*offset*/, Bytes /*from*/, bool /*fua*/) override {
    return refuse();
  }
  Task<Result<void>> flush() override { co_return Result<void>{}; }
  Task<Result<void>> discard(std::uint64_t /*offset*/, std::uint64_t /*length*/,
                             bool /*fua*/) override {
    return refuse();
  }
  Task<Result<void>> zero(std::uint64_t /*offset*/, std::uint64_t /*length*/,
                          nbd::ZeroOptions /*options*/) override {
    return refuse();
  }

  Task<Result<std::vector<nbd::StatusExtent>>> block_status(std::string context,
                                                            std::uint64_t offset,
                                                            std::uint64_t length,
                                                            std::size_t extents_max) override {
    if (context != nbd::base_allocation) {
      co_return co_await changes_status(volume_, std::move(context), checkpoint_, {offset, length},
                                        extents_max);
    }
    co_return status_of_allocation(
        CO_TRY(co_await reader_->allocation(offset, length, extents_max)));
  }

 private:
  Task<Result<void>> refuse() {
    co_return failure(ErrorKind::read_only,
                      fmt::format("the export '{}' is a checkpoint", info_.name));
  }

  disk::Volume& volume_;
  std::unique_ptr<disk::CheckpointReader> reader_;
  std::string checkpoint_;
  std::shared_ptr<CheckpointReaders> readers_;
  nbd::ExportInfo info_;
};

}  // namespace

std::shared_ptr<nbd::Export> make_volume_export(disk::Volume& volume, std::string name,
                                                bool read_only) {
  return std::make_shared<LiveExport>(volume, std::move(name), read_only);
}

VolumeExports::VolumeExports(disk::Volume& volume, std::shared_ptr<CheckpointReaders> readers,
                             Options options)
    : volume_(volume), readers_(std::move(readers)), options_(std::move(options)) {
  if (options_.default_export.empty()) options_.default_export = options_.name;
}

std::vector<nbd::ListedExport> VolumeExports::list() {
  std::vector<nbd::ListedExport> listed;
  if (!options_.checkpoints_only) {
    listed.push_back({.name = options_.name, .description = live_description});
  }
  for (const auto& checkpoint : volume_.checkpoints()) {
    if (!checkpoint.provisional && !checkpoint.lost) {
      listed.push_back({.name = fmt::format("{}@{}", options_.name, checkpoint.name),
                        .description = description_of(checkpoint.name)});
    }
  }
  return listed;
}

Task<Result<std::shared_ptr<nbd::Export>>> VolumeExports::find(std::string name) {
  if (name.empty()) name = options_.default_export;
  if (name == options_.name && !options_.checkpoints_only) {
    co_return make_volume_export(volume_, std::move(name), options_.read_only);
  }
  if (!name.starts_with(options_.name + '@')) {
    co_return failure(ErrorKind::not_found, fmt::format("there is no export '{}' here", name));
  }
  auto reader = CO_TRY(volume_.read_checkpoint(name.substr(options_.name.size() + 1)));
  co_return std::make_shared<CheckpointExport>(volume_, std::move(name), std::move(reader),
                                               readers_);
}

Result<std::vector<nbd::StatusExtent>> status_of_changes(const disk::ChangesPage& page,
                                                         disk::Extent range,
                                                         std::size_t extents_max) {
  const std::uint64_t range_end = range.offset + range.length;
  const std::uint64_t end = page.complete ? range_end : std::min(page.next_offset, range_end);
  std::vector<nbd::StatusExtent> status;
  const auto add = [&](std::uint64_t length, std::uint32_t flags) {
    if (length > 0 && status.size() < extents_max)
      status.push_back({.length = length, .flags = flags});
  };

  std::uint64_t position = range.offset;
  for (const disk::Extent& extent : page.extents) {
    if (extent.offset < position || extent.length > end || extent.offset > end - extent.length) {
      return failure(ErrorKind::corrupt,
                     "the changes do not lie in the range that they were asked for");
    }
    add(extent.offset - position, 0);
    add(extent.length, changed_flag);
    position = extent.offset + extent.length;
  }
  add(end - position, 0);
  if (status.empty()) return failure(ErrorKind::corrupt, "the changes say nothing of the range");
  return status;
}

}  // namespace berth::machine
