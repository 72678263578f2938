// Event: coroutines wait for a change that another coroutine announces. One loop, no threads.
// A waiter re-checks its condition: `while (!condition) co_await event.wait();`
#pragma once

#include <coroutine>
#include <utility>
#include <vector>

#include "async/loop.h"

namespace berth {

class Event {
 public:
  explicit Event(Loop& loop) : loop_(loop) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Resumes everybody who waits now.
  void notify_all() {
    for (const auto waiter : waiters_) loop_.post(waiter);
    waiters_.clear();
  }
  bool has_waiters() const { return !waiters_.empty(); }

  auto wait() {
    struct Wait {
      Event& event;
      static bool await_ready() noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) { event.waiters_.push_back(waiter); }
      static void await_resume() noexcept {}
    };
    return Wait{*this};
  }

 private:
  Loop& loop_;
  std::vector<std::coroutine_handle<>> waiters_;
};

/// Mutual exclusion between coroutines of one loop, in the order of arrival.
class AsyncMutex {
 public:
  explicit AsyncMutex(Loop& loop) : loop_(loop) {}
  AsyncMutex(const AsyncMutex&) = delete;
  AsyncMutex& operator=(const AsyncMutex&) = delete;

  class Guard {
   public:
    explicit Guard(AsyncMutex& mutex) : mutex_(&mutex) {}
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&&) = delete;
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      if (mutex_ != nullptr) mutex_->unlock();
    }

   private:
    AsyncMutex* mutex_;
  };

  /// auto guard = co_await mutex.lock();
  auto lock() {
    struct Wait {
      AsyncMutex& mutex;
      bool await_ready() const noexcept {
        if (mutex.locked_) return false;
        return mutex.locked_ = true;
      }
      void await_suspend(std::coroutine_handle<> waiter) { mutex.waiters_.push_back(waiter); }
      Guard await_resume() noexcept { return Guard(mutex); }
    };
    return Wait{*this};
  }

 private:
  void unlock() {
    if (waiters_.empty()) {
      locked_ = false;
      return;
    }
    const auto next = waiters_.front();  // the lock passes to it, still locked
    waiters_.erase(waiters_.begin());
    loop_.post(next);
  }

  Loop& loop_;
  bool locked_ = false;
  std::vector<std::coroutine_handle<>> waiters_;
};

}  // namespace berth
