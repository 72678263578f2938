// Task<T>: a lazy coroutine, started by the one that awaits it, on the same loop (no threads
// involved).
//
// A Task owns its coroutine. Awaiting it runs it to its end and gives its result; destroying it
// before that destroys what it has not done yet (only simulations of process death do so: a live
// I/O points into the coroutine). Every Task is awaited or handed to a Gate. Results travel as
// Result<T>; an exception that leaves a coroutine ends the process.
#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <utility>

#include "base/result.h"

namespace berth {

namespace detail {

/// Coroutine frames come from per-thread free lists: a request must not cost a malloc.
void* allocate_frame(std::size_t size);
void free_frame(void* frame, std::size_t size);

class PromiseBase {
 public:
  static void* operator new(std::size_t size) { return allocate_frame(size); }
  static void operator delete(void* frame, std::size_t size) { free_frame(frame, size); }

  static std::suspend_always initial_suspend() noexcept { return {}; }
  static void unhandled_exception() noexcept { std::terminate(); }

  struct FinalAwaiter {
    static bool await_ready() noexcept { return false; }
    template <typename Promise>
    static std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) noexcept {
      return self.promise().continuation;
    }
    static void await_resume() noexcept {}
  };
  static FinalAwaiter final_suspend() noexcept { return {}; }

  std::coroutine_handle<> continuation = std::noop_coroutine();
};

template <typename T>
class Promise final : public PromiseBase {
 public:
  std::coroutine_handle<Promise> get_return_object() {
    return std::coroutine_handle<Promise>::from_promise(*this);
  }
  template <typename U>
  void return_value(U&& value) {
    value_.emplace(std::forward<U>(value));
  }
  T take() { return std::move(*value_); }

 private:
  std::optional<T> value_;
};

template <>
class Promise<void> final : public PromiseBase {
 public:
  std::coroutine_handle<Promise> get_return_object() {
    return std::coroutine_handle<Promise>::from_promise(*this);
  }
  static void return_void() {}
  static void take() {}
};

}  // namespace detail

template <typename T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  // NOLINTNEXTLINE(google-explicit-constructor): the coroutine machinery converts the handle
  Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  ~Task() { reset(); }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiter) noexcept {
    handle_.promise().continuation = waiter;
    return handle_;
  }
  T await_resume() { return handle_.promise().take(); }

 private:
  void reset() {
    if (handle_) std::exchange(handle_, {}).destroy();
  }
  Handle handle_;
};

}  // namespace berth
