#include "async/stream.h"

namespace berth {

Task<Result<void>> Stream::finish_writing() { co_return Result<void>{}; }

Task<Result<void>> Stream::read_exactly(MutableBytes into) {
  while (!into.empty()) {
    const std::size_t got = CO_TRY(co_await read_some(into));
    if (got == 0) co_return failure(ErrorKind::disconnected, "the peer closed the connection");
    into = into.subspan(got);
  }
  co_return Result<void>{};
}

}  // namespace berth
