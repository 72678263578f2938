#include "async/deadline.h"

#include <utility>

namespace berth {

Deadline::Deadline(Loop& loop, Duration after, std::move_only_function<void()> expire)
    : loop_(loop), expire_(std::move(expire)), gate_(loop) {
  timer_.deadline = loop.now() + after;
  gate_.spawn(watch());
}

Task<> Deadline::watch() {
  struct Wait {
    Deadline& deadline;
    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) {
      deadline.timer_.waiter = waiter;
      deadline.loop_.add_timer(deadline.timer_);
    }
    static void await_resume() noexcept {}
  };
  co_await Wait{*this};
  if (stopped_) co_return;
  expired_ = true;
  expire_();
}

Task<> Deadline::stop() {
  stopped_ = true;
  if (timer_.armed) {
    loop_.remove_timer(timer_);
    loop_.post(timer_.waiter);
  }
  co_await gate_.drained();
}

}  // namespace berth
