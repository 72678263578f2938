#include "agent/program/timer.h"

#include <algorithm>
#include <cerrno>

#include <sys/epoll.h>
#include <sys/timerfd.h>

namespace berth::agent {

Result<std::unique_ptr<Timer>> Timer::start(EventLoop& loop, std::chrono::milliseconds after,
                                            std::function<void()> elapsed) {
  Fd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!fd) return errno_failure(errno, "cannot make a timer");
  // 0 would be never.
  const auto count = std::max<std::chrono::milliseconds::rep>(after.count(), 1);
  const itimerspec until{.it_interval = {},
                         .it_value = {.tv_sec = count / 1000, .tv_nsec = count % 1000 * 1'000'000}};
  if (::timerfd_settime(fd.get(), 0, &until, nullptr) != 0) {
    return errno_failure(errno, "cannot set a timer");
  }
  std::unique_ptr<Timer> timer(new Timer(loop, std::move(fd)));
  loop.watch(timer->fd_.get(), EPOLLIN,
             [elapsed = std::move(elapsed)](std::uint32_t) { elapsed(); });
  return timer;
}

}  // namespace berth::agent
