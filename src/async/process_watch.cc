#include "async/process_watch.h"

#include <fcntl.h>
#include <liburing.h>
#include <poll.h>

#include "async/uring_call.h"
#include "base/process.h"

namespace berth {

Task<bool> ProcessWatch::ended(const Fd& pidfd) {
  const Fd watched(::fcntl(pidfd.get(), F_DUPFD_CLOEXEC, 0));
  while (!is_cancelled_ && watched && !has_ended(watched)) {
    UringCall end(loop_, [&](io_uring_sqe& entry) {
      ::io_uring_prep_poll_add(&entry, watched.get(), POLLIN);
    });
    waiting_ = &end;
    (void)co_await end;
    if (waiting_ == &end) waiting_ = nullptr;
  }
  co_return !is_cancelled_;
}

void ProcessWatch::cancel() {
  is_cancelled_ = true;
  if (waiting_ != nullptr) loop_.cancel(*waiting_);
}

}  // namespace berth
