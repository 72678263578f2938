#include "machine/extent_copy.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "async/event.h"
#include "async/gate.h"
#include "base/aligned_buffer.h"

namespace berth::machine {
namespace {

constexpr std::size_t granularity = 64 * KiB;  // zeros are looked for in pieces of this

class Copy {
 public:
  Copy(Loop& loop, ByteSource& from, ExtentSource& extents, File& to, JobObserver& observer,
       CopyOptions options)
      : from_(from),
        extents_(extents),
        to_(to),
        observer_(observer),
        options_(options),
        next_lock_(loop),
        workers_(loop) {}

  Task<Result<CopyOutcome>> run() {
    for (std::size_t i = 0; i < copy_pieces_in_flight; ++i) workers_.spawn(copy_pieces());
    co_await workers_.drained();
    if (error_) co_return failure(std::move(*error_));
    co_return outcome_;
  }

 private:
  Task<> copy_pieces() {
    const AlignedBuffer buffer(copy_piece_size);
    while (!error_) {
      const auto copied = co_await copy_next(buffer);
      if (!copied && !error_) error_ = copied.error();
      if (!copied || !*copied) co_return;
    }
  }

  /// False when nothing is left.
  Task<Result<bool>> copy_next(const AlignedBuffer& buffer) {
    CO_TRY(observer_.check());
    const auto piece = CO_TRY(co_await take_piece());
    if (!piece) co_return false;
    const MutableBytes bytes = buffer.first(piece->length);
    CO_TRY(co_await from_.read(piece->offset, bytes));
    CO_TRY(co_await write_runs(piece->offset, bytes));
    done_ += piece->length;
    observer_.report({.phase = "copy", .done = done_, .total = options_.total});
    co_return true;
  }

  Task<Result<std::optional<disk::Extent>>> take_piece() {
    const auto guard = co_await next_lock_.lock();
    if (extent_.length == 0) {
      const auto next = CO_TRY(co_await extents_.next());
      if (!next) co_return std::nullopt;
      if (options_.count_gaps) done_ += next->offset - position_;
      extent_ = *next;
      position_ = extent_.offset + extent_.length;
      ++outcome_.extents;
      outcome_.bytes += extent_.length;
    }
    // Pieces end where a multiple of their size does, so that all but the first and the last are
    // whole.
    const std::uint64_t end = round_down(extent_.offset, copy_piece_size) + copy_piece_size;
    const disk::Extent piece{extent_.offset, std::min(extent_.length, end - extent_.offset)};
    extent_.offset += piece.length;
    extent_.length -= piece.length;
    co_return piece;
  }

  /// Writes what is not zero, and clears the rest where it must be cleared.
  Task<Result<void>> write_runs(std::uint64_t offset, Bytes bytes) {
    std::size_t start = 0;
    while (start < bytes.size()) {
      const bool zero = is_zero(granule(bytes, start));
      std::size_t end = start;
      while (end < bytes.size() && is_zero(granule(bytes, end)) == zero)
        end += granule(bytes, end).size();
      if (!zero) {
        CO_TRY(co_await to_.write(offset + start, bytes.subspan(start, end - start)));
      } else if (options_.clear_zeros) {
        CO_TRY(co_await to_.punch(offset + start, end - start));
      }
      start = end;
    }
    co_return Result<void>{};
  }

  static Bytes granule(Bytes bytes, std::size_t start) {
    return bytes.subspan(start, std::min(granularity, bytes.size() - start));
  }

  ByteSource& from_;
  ExtentSource& extents_;
  File& to_;
  JobObserver& observer_;
  const CopyOptions options_;
  AsyncMutex next_lock_;
  Gate workers_;
  disk::Extent extent_;  // what is left of the current one
  std::uint64_t position_ = 0;
  std::uint64_t done_ = 0;
  CopyOutcome outcome_;
  std::optional<Error> error_;
};

}  // namespace

Task<Result<CopyOutcome>> copy_extents(Loop& loop, ByteSource& from, ExtentSource& extents,
                                       File& to, JobObserver& observer, CopyOptions options) {
  Copy copy(loop, from, extents, to, observer, options);
  co_return co_await copy.run();
}

}  // namespace berth::machine
