// UringLoop: the real Loop. io_uring, one thread, no locks on the data path.
//
// The thread that first runs the loop or starts an operation on it is its thread from then on;
// everything but stop() and post_from_thread() is called there. It is destroyed there too, or once
// that thread has gone and nothing is under way. Files, streams and gates go before their loop.
// Operations go to the kernel after each coroutine that started some, in the same system call as
// the wait where nothing else is to do; and the kernel is asked for news between any two
// coroutines. What brings new work (a stream's receive) goes before what answers old work: so the
// disk is never idle while replies are written.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "async/gate.h"
#include "async/loop.h"
#include "async/task.h"
#include "async/uring_operation.h"
#include "base/fd.h"
#include "base/result.h"

struct io_uring;

namespace berth {

class OffloadPool;

class UringLoop final : public Loop {
 public:
  /// Operations in the kernel at one time; more wait in order inside the loop.
  static constexpr unsigned operations_max = 4096;
  /// Calls from other threads that have not run yet.
  static constexpr std::size_t posted_calls_max = 65536;

  struct Options {
    unsigned offload_threads = 2;  // 1 to offload_threads_max; started when first needed
  };
  static constexpr unsigned offload_threads_max = 4;

  /// unsupported or permission where the kernel or a sandbox has no io_uring.
  static Result<std::unique_ptr<UringLoop>> create();
  static Result<std::unique_ptr<UringLoop>> create(Options options);
  ~UringLoop() override;
  UringLoop(const UringLoop&) = delete;
  UringLoop& operator=(const UringLoop&) = delete;

  /// Runs until stop(). One that came before run() counts.
  void run();
  /// Any thread. Ends run() once the coroutine that is running suspends.
  void stop();
  /// Runs the loop until `task` has ended, and gives its result. Other tasks run too, as far as
  /// they get.
  template <typename T>
  T run_until_complete(Task<T> task);

  /// Any thread. Runs `call` on the loop soon, in the order of the calls; `limit` when
  /// posted_calls_max wait. What has not run when the loop goes is dropped.
  Result<void> post_from_thread(std::move_only_function<void()> call);

  /// Gives the operation to the kernel, or queues it when operations_max are under way.
  void start(UringOperation& operation);
  /// Asks for its end: it completes soon, with -ECANCELED unless it had already ended otherwise.
  void cancel(UringOperation& operation);

  /// As post(), before everything that was only posted: for what brings new work, so that the disk
  /// is busy with it while answers to old work are written.
  void post_urgent(std::coroutine_handle<> waiter) { urgent_.push_back(waiter); }

  // Loop and Clock.
  void post(std::coroutine_handle<> waiter) override { ready_.push_back(waiter); }
  void add_timer(TimerRequest& timer) override;
  void remove_timer(TimerRequest& timer) override;
  void submit_offload(OffloadRequest& request) override;
  Instant now() const override { return std::chrono::steady_clock::now(); }
  std::chrono::system_clock::time_point wall_time() const override {
    return std::chrono::system_clock::now();
  }

 private:
  class Wakeup;
  explicit UringLoop(Options options);
  Result<void> set_up();
  void bind_to_this_thread();
  void run_until(const bool& done);
  void run_ready();
  void run_urgent();
  bool has_news() const;
  bool has_task_work() const;
  void fire_timers();
  void reap_completions();
  bool reap_one();
  void wait_for_completion();
  bool give_to_kernel(UringOperation& operation);
  void start_queued();
  void submit();
  void wake();
  void empty_inbox();
  void drain_operations();

  template <typename T>
  static Task<> collect(Task<T> task, std::optional<T>& value, bool& done) {
    value.emplace(co_await task);
    done = true;
  }
  static Task<> collect(Task<> task, bool& done) {
    co_await task;
    done = true;
  }

  const Options options_;
  std::unique_ptr<io_uring> ring_;
  bool ring_is_set_up_ = false;
  std::thread::id thread_;  // whose loop it is; none yet when default
  std::deque<std::coroutine_handle<>> ready_;
  std::deque<std::coroutine_handle<>> urgent_;
  std::multimap<Instant, TimerRequest*> timers_;
  unsigned in_flight_ = 0;
  UringOperation* queue_first_ = nullptr;  // waiting for room in the kernel
  UringOperation* queue_last_ = nullptr;
  bool stop_ = false;
  bool closing_ = false;

  // What other threads leave here; guarded by inbox_mutex_.
  std::mutex inbox_mutex_;
  std::vector<std::move_only_function<void()>> inbox_calls_;
  std::vector<std::coroutine_handle<>> inbox_waiters_;
  bool inbox_stop_ = false;
  bool inbox_signalled_ = false;

  Fd wakeup_fd_;  // an eventfd; readable when the inbox has something
  std::unique_ptr<Wakeup> wakeup_;
  std::unique_ptr<OffloadPool> pool_;  // last: its threads use all of the above
};

template <typename T>
T UringLoop::run_until_complete(Task<T> task) {
  bool done = false;
  Gate gate(*this);
  if constexpr (std::is_void_v<T>) {
    gate.spawn(collect(std::move(task), done));
    run_until(done);
  } else {
    std::optional<T> value;
    gate.spawn(collect(std::move(task), value, done));
    run_until(done);
    return std::move(*value);
  }
}

}  // namespace berth
