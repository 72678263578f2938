// The agent's only thread waits here: descriptors and what to do when they are ready.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "base/fd.h"
#include "base/result.h"

namespace berth::agent {

class EventLoop {
 public:
  using Ready = std::function<void(std::uint32_t events)>;

  static Result<EventLoop> create();

  /// `events` of epoll_ctl(2). Level-triggered unless EPOLLET is among them. Again for a descriptor
  /// that is watched: changes them.
  void watch(int fd, std::uint32_t events, Ready ready);
  void change(int fd, std::uint32_t events);
  /// Before the descriptor is closed. Allowed while its own `ready` runs.
  void forget(int fd);

  /// Waits once, and calls what is ready. Without a limit it waits for as long as it takes.
  void wait(std::optional<std::chrono::milliseconds> limit);

 private:
  explicit EventLoop(Fd epoll) : epoll_(std::move(epoll)) {}

  Fd epoll_;
  std::map<int, std::shared_ptr<Ready>> watched_;
};

}  // namespace berth::agent
