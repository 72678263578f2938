// UringCall: a coroutine waits for one operation of the kernel's.
//
//   UringCall call(loop, [&](io_uring_sqe& entry) { io_uring_prep_accept(&entry, fd, …); });
//   const int result = co_await call;  // -errno on failure
//
// Lives in the coroutine; loop.cancel(call) ends it early.
#pragma once

#include <coroutine>
#include <cstdint>
#include <utility>

#include "async/uring_loop.h"

namespace berth {

/// Whose waiter goes first.
enum class UringTurn : std::uint8_t { ordinary, urgent };

template <typename Prepare>
class UringCall final : public UringOperation {
 public:
  UringCall(UringLoop& loop, Prepare prepare, UringTurn turn = UringTurn::ordinary)
      : loop_(loop), prepare_(std::move(prepare)), turn_(turn) {}

  static bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    loop_.start(*this);
  }
  int await_resume() const noexcept { return result_; }

 private:
  void prepare(io_uring_sqe& entry) override { prepare_(entry); }
  void complete(int result) override {
    result_ = result;
    turn_ == UringTurn::urgent ? loop_.post_urgent(waiter_) : loop_.post(waiter_);
  }

  UringLoop& loop_;
  Prepare prepare_;
  UringTurn turn_;
  std::coroutine_handle<> waiter_;
  int result_ = 0;
};

}  // namespace berth
