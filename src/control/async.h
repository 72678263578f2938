// The control plane's coroutines: Asio awaitables on one io_context that one thread runs.
//
// Everything here belongs to that thread. Between two co_awaits nothing else runs, so state needs
// no locks; what has to stay as it is over a co_await takes an AsyncMutex.
#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <optional>
#include <utility>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include "base/fd.h"

namespace berth::control {

template <typename T>
using Async = boost::asio::awaitable<T>;
using Executor = boost::asio::any_io_executor;
using Milliseconds = std::chrono::milliseconds;

/// Waiters of a condition: check it, wait, check again. May go before its waiters do.
class Wakeup {
 public:
  explicit Wakeup(Executor executor);
  /// Everybody who waits goes on.
  void notify();
  Async<void> wait();
  /// False if nobody has called notify() by then.
  Async<bool> wait_for(Milliseconds duration);

 private:
  struct Waiter;
  Executor executor_;
  std::shared_ptr<std::list<Waiter*>> waiters_;
};

/// co_await for some time.
Async<void> pause_for(Milliseconds duration);

/// co_await until the process has ended, on a duplicate of its descriptor.
Async<void> process_end(const Fd& pidfd);

/// Held over co_awaits. Not fair, not recursive. May go before its locks do.
class AsyncMutex {
  struct State;

 public:
  class Lock {
   public:
    Lock() = default;
    explicit Lock(std::shared_ptr<State> state) : state_(std::move(state)) {}
    Lock(Lock&& other) noexcept = default;
    Lock& operator=(Lock&& other) noexcept {
      std::swap(state_, other.state_);
      return *this;
    }
    ~Lock();

   private:
    std::shared_ptr<State> state_;
  };

  explicit AsyncMutex(Executor executor);
  Async<Lock> lock();
  /// Nothing if somebody has it.
  std::optional<Lock> try_lock();

 private:
  std::shared_ptr<State> state_;
};

}  // namespace berth::control
