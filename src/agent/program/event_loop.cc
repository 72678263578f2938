#include "agent/program/event_loop.h"

#include <array>
#include <cerrno>
#include <span>

#include <sys/epoll.h>

namespace berth::agent {

Result<EventLoop> EventLoop::create() {
  Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return errno_failure(errno, "cannot make an epoll descriptor");
  return EventLoop(std::move(epoll));
}

void EventLoop::watch(int fd, std::uint32_t events, Ready ready) {
  forget(fd);
  epoll_event event{.events = events, .data = {.fd = fd}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) {
    watched_[fd] = std::make_shared<Ready>(std::move(ready));
  }
}

void EventLoop::change(int fd, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void EventLoop::forget(int fd) {
  if (watched_.erase(fd) > 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void EventLoop::wait(std::optional<std::chrono::milliseconds> limit) {
  std::array<epoll_event, 64> events{};
  const int timeout_ms = limit ? static_cast<int>(limit->count()) : -1;
  const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), timeout_ms);
  if (count <= 0) return;
  for (const epoll_event& event : std::span(events).first(static_cast<std::size_t>(count))) {
    const auto found = watched_.find(event.data.fd);
    if (found == watched_.end()) continue;
    const auto ready = found->second;  // it may forget itself
    (*ready)(event.events);
  }
}

}  // namespace berth::agent
