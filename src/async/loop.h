// Loop: one thread that runs coroutines and their I/O. The seam between the engine and the machine.
//
// Everything that belongs to a loop (files, streams, volumes) is used on its thread only. The real
// one is uring_loop.h; simulations turn testing/sim_loop.h, where time and order come from a seed.
// Waking a waiter is always `post()`: nobody's code runs inside somebody else's.
#pragma once

#include <coroutine>
#include <optional>
#include <type_traits>
#include <utility>

#include "async/task.h"
#include "base/clock.h"

namespace berth {

/// A waiter for a point in time; lives in the waiting coroutine.
struct TimerRequest {
  Instant deadline{};
  std::coroutine_handle<> waiter;
  bool armed = false;  // owned by the loop while true
};

/// Work for the pool; lives in the waiting coroutine. `run` is called on another thread, once.
struct OffloadRequest {
  void (*run)(OffloadRequest&) = nullptr;
  std::coroutine_handle<> waiter;
  OffloadRequest* next = nullptr;
};

class Loop : public Clock {
 public:
  /// Resumes `waiter` soon, in the order of the calls.
  virtual void post(std::coroutine_handle<> waiter) = 0;

  /// Resumes the request's waiter at its deadline or soon after it.
  virtual void add_timer(TimerRequest& timer) = 0;
  /// Takes back a timer that has not fired; its waiter is not resumed. No effect on one that has.
  virtual void remove_timer(TimerRequest& timer) = 0;

  /// Runs the request on the pool, then resumes its waiter on the loop.
  virtual void submit_offload(OffloadRequest& request) = 0;

  /// co_await loop.sleep(duration);
  auto sleep(Duration duration) { return SleepAwaiter{*this, now() + duration}; }
  /// co_await loop.yield(); lets everything that is ready run first.
  auto yield() { return YieldAwaiter{*this}; }

 private:
  struct SleepAwaiter {
    SleepAwaiter(Loop& loop, Instant deadline) : loop_(loop) { timer_.deadline = deadline; }
    SleepAwaiter(const SleepAwaiter&) = delete;
    SleepAwaiter& operator=(const SleepAwaiter&) = delete;
    ~SleepAwaiter() {
      if (timer_.armed) loop_.remove_timer(timer_);
    }
    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) {
      timer_.waiter = waiter;
      loop_.add_timer(timer_);
    }
    static void await_resume() noexcept {}

   private:
    Loop& loop_;
    TimerRequest timer_;
  };

  struct YieldAwaiter {
    Loop& loop;
    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) { loop.post(waiter); }
    static void await_resume() noexcept {}
  };
};

/// co_await offload(loop, [..] { return work(); }): runs `work` on the pool, for what burns CPU or
/// blocks. What it touches must not be used by anybody else meanwhile.
template <typename Work>
auto offload(Loop& loop, Work work) {
  using Value = std::invoke_result_t<Work&>;
  struct Empty {};
  using Stored = std::conditional_t<std::is_void_v<Value>, Empty, std::optional<Value>>;

  struct Awaiter : OffloadRequest {
    Awaiter(Loop& on, Work&& to_do) : loop(on), work(std::move(to_do)) {}
    Loop& loop;
    Work work;
    Stored value;

    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      waiter = handle;
      run = [](OffloadRequest& request) {
        auto& self = static_cast<Awaiter&>(request);
        if constexpr (std::is_void_v<Value>) {
          self.work();
        } else {
          self.value.emplace(self.work());
        }
      };
      loop.submit_offload(*this);
    }
    Value await_resume() {
      if constexpr (!std::is_void_v<Value>) return std::move(*value);
    }
  };
  return Awaiter(loop, std::move(work));
}

}  // namespace berth
