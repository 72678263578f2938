#include "async/signals.h"

#include <cerrno>

#include <liburing.h>
#include <pthread.h>
#include <sys/signalfd.h>

#include "async/uring_call.h"

namespace berth {

Result<std::unique_ptr<Signals>> Signals::create(UringLoop& loop, std::span<const int> numbers) {
  sigset_t wanted;
  sigset_t before;
  ::sigemptyset(&wanted);
  for (const int number : numbers) {
    if (::sigaddset(&wanted, number) != 0)
      return errno_failure(errno, "cannot wait for a signal of this number");
  }
  Fd fd(::signalfd(-1, &wanted, SFD_CLOEXEC));
  if (!fd) return errno_failure(errno, "cannot create a signalfd");
  if (const int outcome = ::pthread_sigmask(SIG_BLOCK, &wanted, &before); outcome != 0) {
    return errno_failure(outcome, "cannot block signals");
  }
  return std::unique_ptr<Signals>(new Signals(loop, std::move(fd), before));
}

Signals::~Signals() {
  CHECK(pending_ == nullptr);
  ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

Task<Result<int>> Signals::next() {
  CHECK(pending_ == nullptr);
  signalfd_siginfo information{};
  int result = -EINTR;
  while (result == -EINTR && !closed_) {
    UringCall read(loop_, [&](io_uring_sqe& entry) {
      ::io_uring_prep_read(&entry, fd_.get(), &information, sizeof information, 0);
    });
    pending_ = &read;
    result = co_await read;
    pending_ = nullptr;
  }
  if (closed_) co_return failure(ErrorKind::cancelled, "nobody waits for signals any more");
  if (result < 0) co_return errno_failure(-result, "cannot read from a signalfd");
  co_return static_cast<int>(information.ssi_signo);
}

void Signals::close() {
  closed_ = true;
  if (pending_ != nullptr) loop_.cancel(*pending_);
}

}  // namespace berth
