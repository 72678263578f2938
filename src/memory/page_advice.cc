#include "memory/page_advice.h"

#include <algorithm>
#include <cerrno>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

namespace berth::memory {
namespace {

constexpr std::size_t pieces_at_once = 1024;  // UIO_MAXIOV

/// How many of the pieces `length` bytes are.
std::size_t whole_pieces(std::span<const iovec> pieces, std::size_t length) {
  std::size_t count = 0;
  for (; count < pieces.size() && pieces[count].iov_len <= length; ++count)
    length -= pieces[count].iov_len;
  return count;
}

}  // namespace

Result<void> advise_pages(const Fd& process, std::span<const iovec> pieces, int advice) {
  while (!pieces.empty()) {
    const auto batch = pieces.first(std::min(pieces.size(), pieces_at_once));
    const long advised =
        ::syscall(SYS_process_madvise, process.get(), batch.data(), batch.size(), advice, 0U);
    // The kernel stops at the first piece that is not mapped, and tells why if it is the first of
    // all. Of one that is mapped in part it has then advised that part.
    if (advised < 0 && errno != ENOMEM) {
      return errno_failure(errno, fmt::format("cannot swap {} a machine's memory",
                                              advice == MADV_PAGEOUT ? "out" : "in"));
    }
    const std::size_t passed =
        advised < 0 ? 1 : whole_pieces(batch, static_cast<std::size_t>(advised));
    pieces = pieces.subspan(std::max<std::size_t>(passed, 1));
  }
  return {};
}

}  // namespace berth::memory
