// Deadline: calls a function once, at a point in time, unless it is stopped before. One loop.
//
//   Deadline deadline(loop, timeout, [&] { stream.shutdown(); });
//   auto outcome = co_await something(stream);
//   co_await deadline.stop();  // always, before it goes
//   if (deadline.expired()) …
#pragma once

#include <functional>

#include "async/gate.h"
#include "async/loop.h"
#include "async/task.h"

namespace berth {

class Deadline {
 public:
  Deadline(Loop& loop, Duration after, std::move_only_function<void()> expire);
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  Task<> stop();
  /// Whether the function has been called.
  bool expired() const { return expired_; }

 private:
  Task<> watch();

  Loop& loop_;
  std::move_only_function<void()> expire_;
  TimerRequest timer_;
  bool stopped_ = false;
  bool expired_ = false;
  Gate gate_;
};

}  // namespace berth
