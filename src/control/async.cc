#include "control/async.h"

#include <fcntl.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/process.h"

namespace berth::control {
namespace asio = boost::asio;

/// In the list for as long as its coroutine waits, and out of it if the coroutine is dropped.
struct Wakeup::Waiter {
  Waiter(const Executor& executor, std::shared_ptr<std::list<Waiter*>> list)
      : timer(executor, asio::steady_timer::time_point::max()), waiters(std::move(list)) {
    waiters->push_back(this);
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  ~Waiter() { waiters->remove(this); }

  asio::steady_timer timer;
  std::shared_ptr<std::list<Waiter*>> waiters;
  bool notified = false;
};

Wakeup::Wakeup(Executor executor)
    : executor_(std::move(executor)), waiters_(std::make_shared<std::list<Waiter*>>()) {}

void Wakeup::notify() {
  for (Waiter* waiter : *waiters_) {
    waiter->notified = true;
    waiter->timer.cancel();
  }
}

Async<void> Wakeup::wait() {
  Waiter waiter(executor_, waiters_);
  co_await waiter.timer.async_wait(asio::as_tuple(asio::use_awaitable));
}

Async<bool> Wakeup::wait_for(Milliseconds duration) {
  Waiter waiter(executor_, waiters_);
  waiter.timer.expires_after(duration);
  co_await waiter.timer.async_wait(asio::as_tuple(asio::use_awaitable));
  co_return waiter.notified;
}

Async<void> process_end(const Fd& pidfd) {
  const Fd watched(::fcntl(pidfd.get(), F_DUPFD_CLOEXEC, 0));
  asio::posix::stream_descriptor ended(co_await asio::this_coro::executor,
                                       ::fcntl(watched.get(), F_DUPFD_CLOEXEC, 0));
  // Asio may say that a descriptor is ready when it is not: an event that was meant for one that it
  // knew before.
  while (!has_ended(watched)) {
    co_await ended.async_wait(asio::posix::stream_descriptor::wait_read,
                              asio::as_tuple(asio::use_awaitable));
  }
}

Async<void> pause_for(Milliseconds duration) {
  asio::steady_timer timer(co_await asio::this_coro::executor, duration);
  co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
}

struct AsyncMutex::State {
  explicit State(Executor executor) : released(std::move(executor)) {}
  bool locked = false;
  Wakeup released;
};

AsyncMutex::AsyncMutex(Executor executor) : state_(std::make_shared<State>(std::move(executor))) {}

Async<AsyncMutex::Lock> AsyncMutex::lock() {
  const auto state = state_;
  while (state->locked) co_await state->released.wait();
  state->locked = true;
  co_return Lock(state);
}

std::optional<AsyncMutex::Lock> AsyncMutex::try_lock() {
  if (state_->locked) return std::nullopt;
  state_->locked = true;
  return Lock(state_);
}

AsyncMutex::Lock::~Lock() {
  if (!state_) return;
  state_->locked = false;
  state_->released.notify();
}

}  // namespace berth::control
