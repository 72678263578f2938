// What is checked here: order and completeness of everything that wakes a coroutine (posts, timers,
// the pool, other threads), that no source starves another, and that the limits on what is under
// way queue, not fail.
#include "async/uring_loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/event.h"
#include "async/test_support.h"
#include "async/uring_call.h"

namespace berth {
namespace {

using namespace std::chrono_literals;

class UringLoopTest : public LoopTest {};

Task<> sleep_and_note(Loop& loop, Duration duration, int name, std::vector<int>& order) {
  co_await loop.sleep(duration);
  order.push_back(name);
}

TEST_F(UringLoopTest, PostedCoroutinesRunInOrder) {
  std::vector<int> order;
  Gate gate(*loop_);
  const auto note = [](Loop& loop, int name, std::vector<int>& into) -> Task<> {
    co_await loop.yield();
    into.push_back(name);
  };
  for (int i = 0; i < 1000; ++i) gate.spawn(note(*loop_, i, order));
  run(*loop_, gate.drained());
  EXPECT_EQ(order.size(), 1000U);
  EXPECT_TRUE(std::ranges::is_sorted(order));
}

TEST_F(UringLoopTest, TimersFireInTheOrderOfTheirDeadlines) {
  std::vector<int> order;
  Gate gate(*loop_);
  gate.spawn(sleep_and_note(*loop_, 3ms, 3, order));
  gate.spawn(sleep_and_note(*loop_, 1ms, 1, order));
  gate.spawn(sleep_and_note(*loop_, 2ms, 2, order));
  gate.spawn(sleep_and_note(*loop_, -1ms, 0, order));
  run(*loop_, gate.drained());
  EXPECT_EQ(order, (std::vector{0, 1, 2, 3}));
}

TEST_F(UringLoopTest, ATimerDoesNotFireEarly) {
  const auto measure = [](Loop& loop) -> Task<Duration> {
    const Instant before = loop.now();
    co_await loop.sleep(2ms);
    co_return loop.now() - before;
  };
  for (int i = 0; i < 5; ++i) EXPECT_GE(run(*loop_, measure(*loop_)), 2ms);
}

TEST_F(UringLoopTest, ATimerTakenBackDoesNotFire) {
  TimerRequest first;
  TimerRequest second;
  first.deadline = second.deadline = loop_->now();
  const auto never = []() -> Task<> {
    ADD_FAILURE() << "resumed";
    co_return;
  };
  const Task<> task = never();
  first.waiter = second.waiter = std::noop_coroutine();
  loop_->add_timer(first);
  loop_->add_timer(second);
  EXPECT_TRUE(first.armed);
  loop_->remove_timer(first);
  EXPECT_FALSE(first.armed);
  loop_->remove_timer(first);
  EXPECT_TRUE(second.armed) << "took back another timer with the same deadline";
  loop_->remove_timer(second);
}

TEST_F(UringLoopTest, YieldingForeverStarvesNeitherTimersNorCompletionsNorThreads) {
  bool done = false;
  const auto spin = [](Loop& loop, const bool& until) -> Task<> {
    while (!until) co_await loop.yield();
  };
  const auto others = [](UringLoop& loop, bool& finished) -> Task<> {
    co_await loop.sleep(1ms);
    UringCall nothing(loop, [](io_uring_sqe& entry) { ::io_uring_prep_nop(&entry); });
    EXPECT_EQ(co_await nothing, 0);
    EXPECT_EQ(co_await offload(loop, [] { return 5; }), 5);
    finished = true;
  };
  Gate gate(*loop_);
  gate.spawn(spin(*loop_, done));
  gate.spawn(others(*loop_, done));
  run(*loop_, gate.drained());
}

TEST_F(UringLoopTest, OffloadedWorkRunsOnAnotherThreadAndItsWaiterOnTheLoop) {
  const auto work = [](Loop& loop) -> Task<> {
    const auto here = std::this_thread::get_id();
    const auto there = co_await offload(loop, [] { return std::this_thread::get_id(); });
    EXPECT_NE(here, there);
    EXPECT_EQ(here, std::this_thread::get_id());
    bool ran = false;
    co_await offload(loop, [&ran] { ran = true; });
    EXPECT_TRUE(ran);
  };
  run(*loop_, work(*loop_));
}

TEST_F(UringLoopTest, ManyOffloadsAllComeBack) {
  Gate gate(*loop_);
  long sum = 0;
  const auto add = [](Loop& loop, int value, long& total) -> Task<> {
    total += co_await offload(loop, [value] { return value; });
  };
  for (int i = 1; i <= 5000; ++i) gate.spawn(add(*loop_, i, sum));
  run(*loop_, gate.drained());
  EXPECT_EQ(sum, 5000L * 5001 / 2);
}

TEST_F(UringLoopTest, OffloadedWorkRunsInParallel) {
  // Each needs the other to be running.
  std::binary_semaphore first(0);
  std::binary_semaphore second(0);
  Gate gate(*loop_);
  const auto meet = [](Loop& loop, std::binary_semaphore& mine,
                       std::binary_semaphore& other) -> Task<> {
    co_await offload(loop, [&] {
      mine.release();
      other.acquire();
    });
  };
  gate.spawn(meet(*loop_, first, second));
  gate.spawn(meet(*loop_, second, first));
  run(*loop_, gate.drained());
}

TEST_F(UringLoopTest, CallsPostedFromThreadsAllRunOnTheLoopInOrder) {
  constexpr int threads = 4;
  constexpr int calls = 2000;
  std::vector<std::vector<int>> seen(threads);
  std::atomic<int> left = threads;
  const auto loop_thread = std::this_thread::get_id();
  std::vector<std::jthread> posters;
  for (int t = 0; t < threads; ++t) {
    posters.emplace_back([&, t] {
      for (int i = 0; i < calls; ++i) {
        EXPECT_TRUE(loop_->post_from_thread([&, t, i] {
          EXPECT_EQ(std::this_thread::get_id(), loop_thread);
          seen[t].push_back(i);
        }));
      }
      if (--left == 0) loop_->stop();
    });
  }
  loop_->run();
  for (const auto& order : seen) {
    EXPECT_EQ(order.size(), static_cast<std::size_t>(calls));
    EXPECT_TRUE(std::ranges::is_sorted(order));
  }
}

TEST_F(UringLoopTest, TooManyPostedCallsAreRefused) {
  int ran = 0;
  for (std::size_t i = 0; i < UringLoop::posted_calls_max; ++i)
    ASSERT_TRUE(loop_->post_from_thread([&ran] { ++ran; }));
  const auto refused = loop_->post_from_thread([] {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::limit);
  loop_->stop();
  loop_->run();
  EXPECT_EQ(ran, static_cast<int>(UringLoop::posted_calls_max));
  EXPECT_TRUE(loop_->post_from_thread([] {}));
}

TEST_F(UringLoopTest, CallsThatNeverRanAreDroppedWithTheLoop) {
  auto held = std::make_shared<int>(0);
  EXPECT_TRUE(loop_->post_from_thread([held] { ++*held; }));
  EXPECT_EQ(held.use_count(), 2);
  loop_.reset();
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(*held, 0);
}

TEST_F(UringLoopTest, StopEndsRunAndRunMayComeAgain) {
  loop_->stop();
  loop_->run();
  std::jthread stopper([this] { loop_->stop(); });
  loop_->run();
}

TEST_F(UringLoopTest, MoreOperationsThanTheKernelTakesWaitInOrder) {
  constexpr int count = 2 * static_cast<int>(UringLoop::operations_max) + 10;
  const Fd signal(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE));
  std::vector<int> order;
  Gate gate(*loop_);
  const auto read_one = [](UringLoop& loop, int fd, int name, std::vector<int>& done) -> Task<> {
    std::uint64_t value = 0;
    UringCall read(loop, [&](io_uring_sqe& entry) {
      ::io_uring_prep_read(&entry, fd, &value, sizeof value, 0);
    });
    EXPECT_EQ(co_await read, 8);
    done.push_back(name);
  };
  for (int i = 0; i < count; ++i) gate.spawn(read_one(*loop_, signal.get(), i, order));
  const std::uint64_t all = count;
  ASSERT_EQ(::write(signal.get(), &all, sizeof all), 8);
  run(*loop_, gate.drained());
  EXPECT_EQ(order.size(), static_cast<std::size_t>(count));
}

TEST_F(UringLoopTest, CancelEndsAnOperationInTheKernelAndOneThatWaits) {
  const Fd signal(::eventfd(0, EFD_CLOEXEC));
  std::vector<UringOperation*> operations;
  int cancelled = 0;
  Gate gate(*loop_);
  const auto read_one = [](UringLoop& loop, int fd, std::vector<UringOperation*>& all,
                           int& count) -> Task<> {
    std::uint64_t value = 0;
    UringCall read(loop, [&](io_uring_sqe& entry) {
      ::io_uring_prep_read(&entry, fd, &value, sizeof value, 0);
    });
    all.push_back(&read);
    if (co_await read == -ECANCELED) ++count;
  };
  for (unsigned i = 0; i < UringLoop::operations_max + 100; ++i) {
    gate.spawn(read_one(*loop_, signal.get(), operations, cancelled));
  }
  // The last ones wait inside the loop; take some of those first, from both ends.
  loop_->cancel(*operations.back());
  loop_->cancel(*operations[operations.size() - 100]);
  for (UringOperation* operation : operations) loop_->cancel(*operation);
  run(*loop_, gate.drained());
  EXPECT_EQ(cancelled, static_cast<int>(operations.size()));
}

TEST_F(UringLoopTest, MayBeMadeOnOneThreadAndRunOnAnother) {
  int result = 0;
  std::thread runner([&] {
    const auto work = [](Loop& loop) -> Task<int> {
      co_await loop.sleep(1ms);
      co_return co_await offload(loop, [] { return 3; });
    };
    result = run(*loop_, work(*loop_));
  });
  runner.join();
  EXPECT_EQ(result, 3);
  loop_.reset();
  // This thread's own loops still work afterwards.
  auto other = MUST(UringLoop::create());
  const auto nap = [](Loop& loop) -> Task<> { co_await loop.sleep(1ms); };
  run(*other, nap(*other));
}

TEST_F(UringLoopTest, LoopsOnTheirOwnThreadsDoNotDisturbEachOther) {
  std::atomic<int> total = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&total] {
        auto loop = MUST(UringLoop::create());
        const auto work = [](Loop& on) -> Task<int> {
          int sum = 0;
          for (int i = 0; i < 50; ++i) sum += co_await offload(on, [] { return 1; });
          co_return sum;
        };
        total += run(*loop, work(*loop));
      });
    }
  }
  EXPECT_EQ(total, 200);
}

TEST_F(UringLoopTest, WaitsUnderWayEndWithTheLoop) {
  // A coroutine that outlives its run: the kernel must not write into it once the loop has gone.
  Gate gate(*loop_);
  const Fd signal(::eventfd(0, EFD_CLOEXEC));
  const auto read_one = [](UringLoop& loop, int fd) -> Task<> {
    std::uint64_t value = 0;
    UringCall read(loop, [&](io_uring_sqe& entry) {
      ::io_uring_prep_read(&entry, fd, &value, sizeof value, 0);
    });
    co_await read;
  };
  gate.spawn(read_one(*loop_, signal.get()));
  loop_.reset();
  gate.abandon();
}

TEST_F(UringLoopTest, OptionsOutOfRangeAreRefused) {
  for (const unsigned threads : {0U, UringLoop::offload_threads_max + 1}) {
    const auto loop = UringLoop::create({.offload_threads = threads});
    ASSERT_FALSE(loop.has_value());
    EXPECT_EQ(loop.error().kind(), ErrorKind::invalid_argument);
  }
}

}  // namespace
}  // namespace berth
