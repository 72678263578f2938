// Calls once after a time, unless it has gone before that.
#pragma once

#include <chrono>
#include <functional>

#include "agent/program/event_loop.h"
#include "base/fd.h"

namespace berth::agent {

/// Stays where it is in memory. The loop outlives it. `elapsed` may destroy it.
class Timer {
 public:
  static Result<std::unique_ptr<Timer>> start(EventLoop& loop, std::chrono::milliseconds after,
                                              std::function<void()> elapsed);
  ~Timer() { loop_.forget(fd_.get()); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  Timer(EventLoop& loop, Fd fd) : loop_(loop), fd_(std::move(fd)) {}

  EventLoop& loop_;
  Fd fd_;
};

}  // namespace berth::agent
