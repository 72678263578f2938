// Waiting for the end of processes that are known by pidfd, for as long as whoever waits wants to.
//
// On one loop.
#pragma once

#include "async/task.h"
#include "async/uring_loop.h"
#include "base/fd.h"

namespace berth {

class ProcessWatch {
 public:
  explicit ProcessWatch(UringLoop& loop) : loop_(loop) {}

  /// Until the process has ended; false after cancel(). The descriptor may go meanwhile.
  Task<bool> ended(const Fd& pidfd);
  /// Nobody waits any more, nor will.
  void cancel();

 private:
  UringLoop& loop_;
  UringOperation* waiting_ = nullptr;  // of the process that was asked for last
  bool is_cancelled_ = false;
};

}  // namespace berth
