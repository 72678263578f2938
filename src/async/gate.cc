#include "async/gate.h"

#include <utility>

namespace berth {

struct Gate::RootPromise {
  static void* operator new(std::size_t size) { return detail::allocate_frame(size); }
  static void operator delete(void* frame, std::size_t size) { detail::free_frame(frame, size); }

  RootPromise(Gate& owner, Task<>& /*task*/) : gate(owner) { gate.link(*this); }
  RootPromise(const RootPromise&) = delete;
  RootPromise& operator=(const RootPromise&) = delete;
  ~RootPromise() { gate.unlink(*this); }

  Root get_return_object();
  static std::suspend_never initial_suspend() noexcept { return {}; }
  static std::suspend_never final_suspend() noexcept { return {}; }  // the frame frees itself
  static void return_void() {}
  static void unhandled_exception() noexcept { std::terminate(); }

  Gate& gate;
  RootPromise* previous = nullptr;
  RootPromise* next = nullptr;
};

struct Gate::Root {
  using promise_type = RootPromise;
};

Gate::Root Gate::RootPromise::get_return_object() { return {}; }

Gate::Root Gate::run(Gate& /*gate*/, Task<> task) { co_await task; }

Gate::~Gate() { CHECK(count_ == 0); }

void Gate::spawn(Task<> task) { run(*this, std::move(task)); }

Task<> Gate::drained() {
  struct Wait {
    Gate& gate;
    bool await_ready() const noexcept { return gate.count_ == 0; }
    void await_suspend(std::coroutine_handle<> waiter) { gate.waiters_.push_back(waiter); }
    static void await_resume() noexcept {}
  };
  while (count_ != 0) co_await Wait{*this};
}

void Gate::abandon() {
  waiters_.clear();
  while (first_ != nullptr) std::coroutine_handle<RootPromise>::from_promise(*first_).destroy();
}

void Gate::link(RootPromise& promise) {
  promise.next = first_;
  if (first_ != nullptr) first_->previous = &promise;
  first_ = &promise;
  ++count_;
}

void Gate::unlink(RootPromise& promise) {
  if (promise.previous != nullptr) promise.previous->next = promise.next;
  if (promise.next != nullptr) promise.next->previous = promise.previous;
  if (first_ == &promise) first_ = promise.next;
  if (--count_ == 0) {
    for (const auto waiter : std::exchange(waiters_, {})) loop_.post(waiter);
  }
}

}  // namespace berth
