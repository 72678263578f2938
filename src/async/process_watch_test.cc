#include "async/process_watch.h"

#include <csignal>
#include <functional>
#include <utility>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/gate.h"
#include "async/test_support.h"
#include "base/process.h"

namespace berth {
namespace {

/// A child that does nothing.
class ProcessWatchTest : public LoopTest {
 protected:
  ProcessWatchTest() : pid_(::fork()) {
    if (pid_ == 0)
      while (true) ::pause();
    pidfd_ = MUST(open_pidfd(pid_));
  }
  ~ProcessWatchTest() override {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  /// What ended() says where `then` is done while it waits.
  bool ended_after(const std::function<void()>& then) {
    return run(*loop_, wait(*loop_, watch_, pidfd_, then));
  }
  static Task<bool> wait(UringLoop& loop, ProcessWatch& watch, const Fd& pidfd,
                         std::function<void()> then) {
    Gate gate(loop);
    const auto later = [](UringLoop& on, std::function<void()> what) -> Task<> {
      co_await on.sleep(std::chrono::milliseconds(10));
      what();
    };
    gate.spawn(later(loop, std::move(then)));
    const bool has_ended = co_await watch.ended(pidfd);
    co_await gate.drained();
    co_return has_ended;
  }

  pid_t pid_;
  Fd pidfd_;
  ProcessWatch watch_{*loop_};
};

TEST_F(ProcessWatchTest, WaitsForTheEnd) {
  EXPECT_TRUE(ended_after([this] { ::kill(pid_, SIGKILL); }));
  EXPECT_TRUE(has_ended(pidfd_));
  EXPECT_TRUE(run(*loop_, watch_.ended(pidfd_)));
}

TEST_F(ProcessWatchTest, NobodyWaitsWhenItIsCancelled) {
  EXPECT_FALSE(ended_after([this] { watch_.cancel(); }));
  EXPECT_FALSE(has_ended(pidfd_));
  EXPECT_FALSE(run(*loop_, watch_.ended(pidfd_)));
}

TEST_F(ProcessWatchTest, TheDescriptorMayGo) {
  EXPECT_TRUE(ended_after([this] {
    pidfd_.reset();
    ::kill(pid_, SIGKILL);
  }));
}

}  // namespace
}  // namespace berth
