#include "machine/file_copy.h"

#include <algorithm>

#include <linux/fs.h>
#include <sys/ioctl.h>

#include "machine/extent_copy.h"
#include "machine/extent_source.h"

namespace berth::machine {
namespace {

class FileBytes final : public ByteSource {
 public:
  explicit FileBytes(File& file) : file_(file) {}
  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    const std::size_t got = CO_TRY(co_await file_.read(offset, into));
    // A file that has shrunk meanwhile reads as zeros.
    std::ranges::fill(into.subspan(got), std::byte{0});
    co_return Result<void>{};
  }

 private:
  File& file_;
};

}  // namespace

bool share_blocks(const Fd& from, const Fd& to) {
  return from && to && ::ioctl(to.get(), FICLONE, from.get()) == 0;
}

Task<Result<void>> copy_data(Loop& loop, File& from, std::uint64_t size, File& to,
                             JobObserver& observer) {
  CO_TRY(to.truncate(size));
  FileBytes bytes(from);
  const auto extents = data_of(from, size);
  CO_TRY(co_await copy_extents(loop, bytes, *extents, to, observer,
                               {.total = size, .count_gaps = true}));
  co_return Result<void>{};
}

}  // namespace berth::machine
