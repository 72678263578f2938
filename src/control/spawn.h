// Starting coroutines: several at once, on their own, or a blocking call on a pool of threads.
#pragma once

#include <exception>
#include <type_traits>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "control/async.h"

namespace berth::control {

/// Runs all of them at once; their results, in their order, when the last has ended. They throw
/// nothing.
template <typename T>
Async<std::vector<T>> gather(std::vector<Async<T>> tasks) {
  const Executor executor = co_await boost::asio::this_coro::executor;
  struct State {
    explicit State(const Executor& executor) : ended(executor) {}
    std::vector<T> results;
    std::size_t running = 0;
    std::exception_ptr exception;
    Wakeup ended;
  };
  const auto state = std::make_shared<State>(executor);
  state->results.resize(tasks.size());
  state->running = tasks.size();
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    boost::asio::co_spawn(executor, std::move(tasks[i]),
                          [state, i](std::exception_ptr exception, T result) {
                            if (exception) state->exception = exception;
                            state->results[i] = std::move(result);
                            --state->running;
                            state->ended.notify();
                          });
  }
  while (state->running != 0) co_await state->ended.wait();
  if (state->exception) std::rethrow_exception(state->exception);
  co_return std::move(state->results);
}

/// Runs `function` on a thread of the pool; the caller goes on where it was. It owns what it uses.
template <typename Function>
Async<std::invoke_result_t<Function>> on_worker(boost::asio::thread_pool& pool, Function function) {
  constexpr auto run = [](Function callee) -> Async<std::invoke_result_t<Function>> {
    co_return callee();
  };
  co_return co_await boost::asio::co_spawn(pool, run(std::move(function)),
                                           boost::asio::use_awaitable);
}

/// Starts a coroutine that nobody waits for. An exception of it ends the process: it handles its
/// own.
inline void start(const Executor& executor, Async<void> task) {
  boost::asio::co_spawn(executor, std::move(task), [](const std::exception_ptr& exception) {
    if (exception) std::terminate();
  });
}

}  // namespace berth::control
