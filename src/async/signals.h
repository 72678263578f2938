// Signals as something to wait for: co_await signals.next() instead of a handler.
//
// The signals are blocked in the thread that creates this, and in the threads that it starts from
// then on: create it in main, before any other thread, and children must unblock them before exec.
// Destroying it gives this thread the mask that it had. One at a time.
#pragma once

#include <csignal>
#include <memory>
#include <span>

#include "async/task.h"
#include "async/uring_loop.h"
#include "base/fd.h"

namespace berth {

class Signals {
 public:
  static Result<std::unique_ptr<Signals>> create(UringLoop& loop, std::span<const int> numbers);
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// The number of the next one that arrives, also if it came before the call; one at a time.
  /// `cancelled` after close().
  Task<Result<int>> next();
  /// Ends a pending next().
  void close();

 private:
  Signals(UringLoop& loop, Fd fd, const sigset_t& mask_before)
      : loop_(loop), fd_(std::move(fd)), mask_before_(mask_before) {}

  UringLoop& loop_;
  Fd fd_;
  sigset_t mask_before_;
  UringOperation* pending_ = nullptr;
  bool closed_ = false;
};

}  // namespace berth
