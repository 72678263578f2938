// Tests only: runs one coroutine to its end on an io_context.
#pragma once

#include <exception>
#include <optional>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "control/async.h"

namespace berth::control {

template <typename T>
T run_for_test(boost::asio::io_context& io, Async<T> task) {
  std::optional<T> result;
  boost::asio::co_spawn(io, std::move(task), [&](const std::exception_ptr& exception, T value) {
    if (exception) std::rethrow_exception(exception);
    result.emplace(std::move(value));
  });
  io.restart();
  while (!result && io.run_one() != 0) {
  }
  return std::move(*result);
}

}  // namespace berth::control
