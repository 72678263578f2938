// Result<T> and the macros that pass errors on.
//
//   TRY(expression)      the value, or return the error from this function
//   CO_TRY(expression)   the same in a coroutine (co_return)
//   MUST(expression)     the value; an error here is a mistake of ours and ends the process
//   CHECK(condition)     an invariant of ours, verified in release builds too. Bytes from guests,
//                        networks and disks must never reach one.
#pragma once

#include <expected>
#include <utility>

#include "base/error.h"

namespace berth {

template <typename T>
using Result = std::expected<T, Error>;

inline std::unexpected<Error> failure(ErrorKind kind, std::string context) {
  return std::unexpected<Error>(std::in_place, kind, std::move(context));
}

inline std::unexpected<Error> failure(Error error) {
  return std::unexpected<Error>(std::move(error));
}

inline std::unexpected<Error> errno_failure(int errno_value, std::string context) {
  return std::unexpected<Error>(Error::from_errno(errno_value, std::move(context)));
}

[[noreturn]] void check_failed(const char* condition, const char* file, int line);
[[noreturn]] void must_failed(const char* expression, const Error& error, const char* file,
                              int line);

}  // namespace berth

// The macros use GNU statement expressions; clang 19 runs the cleanups of a branch out of one.
// NOLINTBEGIN(cppcoreguidelines-macro-usage)
#define BERTH_TRY_IMPL(return_keyword, ...)                                                    \
  ({                                                                                           \
    auto berth_try_result = (__VA_ARGS__);                                                     \
    if (!berth_try_result.has_value()) [[unlikely]]                                            \
      return_keyword ::std::unexpected<::berth::Error>(::std::move(berth_try_result).error()); \
    ::berth::detail::take(::std::move(berth_try_result));                                      \
  })

#define TRY(...) BERTH_TRY_IMPL(return, __VA_ARGS__)
#define CO_TRY(...) BERTH_TRY_IMPL(co_return, __VA_ARGS__)

#define MUST(...)                                                                        \
  ({                                                                                     \
    auto berth_must_result = (__VA_ARGS__);                                              \
    if (!berth_must_result.has_value()) [[unlikely]]                                     \
      ::berth::must_failed(#__VA_ARGS__, berth_must_result.error(), __FILE__, __LINE__); \
    ::berth::detail::take(::std::move(berth_must_result));                               \
  })

#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) [[unlikely]]                           \
      ::berth::check_failed(#condition, __FILE__, __LINE__); \
  } while (false)
// NOLINTEND(cppcoreguidelines-macro-usage)

namespace berth::detail {

template <typename T>
T take(std::expected<T, Error>&& result) {
  return std::move(*result);
}

inline void take(std::expected<void, Error>&& /*result*/) {}

}  // namespace berth::detail
