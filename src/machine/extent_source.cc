#include "machine/extent_source.h"

#include <algorithm>
#include <utility>

#include "base/units.h"

namespace berth::machine {
namespace {

constexpr std::size_t page_extents_max = 4096;
constexpr std::uint64_t allocation_page_size = 64 * GiB;  // bytes of the volume looked at at once

class Pages : public ExtentSource {
 public:
  Task<Result<std::optional<disk::Extent>>> next() final {
    while (index_ == page_.size()) {
      if (complete_) co_return std::nullopt;
      page_.clear();
      index_ = 0;
      CO_TRY(co_await load());
    }
    co_return page_[index_++];
  }

 protected:
  /// Fills the empty page_ from next_offset_ on, and moves it forward.
  virtual Task<Result<void>> load() = 0;

  Result<void> advance_to(std::uint64_t offset) {
    if (offset <= next_offset_ && !complete_) {
      return failure(ErrorKind::internal, "a page of extents does not go on");
    }
    next_offset_ = offset;
    return {};
  }

  std::vector<disk::Extent> page_;
  std::size_t index_ = 0;
  std::uint64_t next_offset_ = 0;
  bool complete_ = false;
};

class CheckpointData final : public Pages {
 public:
  explicit CheckpointData(disk::CheckpointReader& reader) : reader_(reader) {}

 private:
  Task<Result<void>> load() override {
    const std::uint64_t size = reader_.info().size;
    const std::uint64_t length = std::min(size - next_offset_, allocation_page_size);
    std::uint64_t offset = next_offset_;
    if (length > 0) {
      const auto extents = CO_TRY(co_await reader_.allocation(offset, length, page_extents_max));
      for (const auto& extent : extents) {
        if (!extent.zero) page_.push_back({offset, extent.length});
        offset += extent.length;
      }
    }
    complete_ = offset == size;
    co_return advance_to(offset);
  }

  disk::CheckpointReader& reader_;
};

class FileData final : public ExtentSource {
 public:
  FileData(File& file, std::uint64_t size) : file_(file), size_(size) {}

  Task<Result<std::optional<disk::Extent>>> next() override {
    const std::uint64_t start = CO_TRY(file_.next_data(offset_));
    if (start >= size_) co_return std::nullopt;
    const std::uint64_t end = std::min(CO_TRY(file_.next_hole(start)), size_);
    if (start < offset_ || end <= start) {
      co_return failure(ErrorKind::corrupt,
                        "'" + file_.name() + "' does not say where its data lies");
    }
    offset_ = end;
    co_return disk::Extent{start, end - start};
  }

 private:
  File& file_;
  const std::uint64_t size_;
  std::uint64_t offset_ = 0;
};

/// Makes one extent of several with little between them: a few more bytes to read cost less than
/// many small writes.
class Merged final : public ExtentSource {
 public:
  explicit Merged(std::unique_ptr<ExtentSource> parts) : parts_(std::move(parts)) {}

  Task<Result<std::optional<disk::Extent>>> next() override {
    std::optional<disk::Extent> merged = std::exchange(following_, std::nullopt);
    if (!merged) merged = CO_TRY(co_await parts_->next());
    while (merged) {
      following_ = CO_TRY(co_await parts_->next());
      const std::uint64_t end = merged->offset + merged->length;
      if (!following_ || following_->offset - end > data_gap_max) break;
      merged->length = following_->offset + following_->length - merged->offset;
    }
    co_return merged;
  }

 private:
  std::unique_ptr<ExtentSource> parts_;
  std::optional<disk::Extent> following_;
};

class Changes final : public Pages {
 public:
  Changes(disk::Volume& volume, disk::ChangesRequest request)
      : volume_(volume), request_(std::move(request)) {}

  bool exact() const override { return exact_; }

 private:
  Task<Result<void>> load() override {
    disk::ChangesRequest request = request_;
    request.offset = next_offset_;
    request.length = UINT64_MAX - next_offset_;
    request.extents_max = page_extents_max;
    disk::ChangesPage page = CO_TRY(co_await volume_.changes(std::move(request)));
    exact_ = exact_ && page.exact;
    complete_ = page.complete;
    page_ = std::move(page.extents);
    co_return advance_to(page.next_offset);
  }

  disk::Volume& volume_;
  disk::ChangesRequest request_;
  bool exact_ = true;
};

}  // namespace

std::unique_ptr<ExtentSource> data_of(disk::CheckpointReader& reader) {
  return std::make_unique<Merged>(std::make_unique<CheckpointData>(reader));
}

std::unique_ptr<ExtentSource> data_of(File& file, std::uint64_t size) {
  return std::make_unique<Merged>(std::make_unique<FileData>(file, size));
}

std::unique_ptr<ExtentSource> changes_of(disk::Volume& volume, disk::ChangesRequest request) {
  return std::make_unique<Changes>(volume, std::move(request));
}

}  // namespace berth::machine
