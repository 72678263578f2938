// SimLoop: a Loop in virtual time, one for each simulated process. Everything that can happen in
// more than one order (completions, timers, work of the pool, who of several processes runs next)
// happens in an order that a seed chooses. The same seed, calls and host give the same run.
//
//   SimHost host(seed);
//   SimLoop loop(host, seed);
//   auto directory = MUST(host.open_directory(loop, "vol"));
//   Result<void> made = loop.run_until_complete(create_volume(loop, *directory));
//
// Process death: gate.abandon(), abandon and delete the process's objects, loop.kill(); then the
// loop serves the next process, or goes. A second SimLoop `beside` the first is another process, of
// the same or another host, in the same time; any of them runs all of them.
//
// Bounded: run_until() gives up after set_steps_max() steps; run_until_complete() then says so,
// with the seed, and ends the program.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "async/loop.h"
#include "testing/sim_scheduler.h"

namespace berth {

class SimHost;

class SimLoop final : public Loop {
 public:
  SimLoop(SimHost& host, std::uint64_t seed);
  SimLoop(SimHost& host, SimLoop& beside);
  SimLoop(const SimLoop&) = delete;
  SimLoop& operator=(const SimLoop&) = delete;
  /// Kills the process. Its coroutines are gone by now.
  ~SimLoop() override;

  Instant now() const override { return scheduler_->now; }
  std::chrono::system_clock::time_point wall_time() const override;
  void post(std::coroutine_handle<> waiter) override { ready_.push_back(waiter); }
  void add_timer(TimerRequest& timer) override;
  void remove_timer(TimerRequest& timer) override;
  void submit_offload(OffloadRequest& request) override;

  /// Resumes one coroutine, or lets one thing happen. False if there is nothing left to do.
  bool run_one_step();

  /// Runs until `predicate()`. False if nothing is left to do, or after as many steps as
  /// set_steps_max() allows.
  template <typename Predicate>
  [[nodiscard]] bool run_until(Predicate predicate) {
    const std::uint64_t limit = scheduler_->steps + steps_max_;
    while (!predicate()) {
      if (scheduler_->steps >= limit || !run_one_step()) return false;
    }
    return true;
  }
  /// Until nothing is left to do, or false after as many steps as are allowed.
  bool run_until_idle();

  /// The result of the task; a hang ends the program with a message that has the seed.
  template <typename T>
  T run_until_complete(Task<T> task) {
    std::optional<T> result = run_at_most(steps_max_, std::move(task));
    if (!result) report_hang();
    return std::move(*result);
  }
  void run_until_complete(Task<> task) {
    if (!run_at_most(steps_max_, std::move(task))) report_hang();
  }

  /// At most so many steps of the task (and of all else). Where it did not end (nothing or false),
  /// it has been destroyed where it stood: a process that dies in the middle of it; kill() follows.
  template <typename T>
  std::optional<T> run_at_most(std::uint64_t steps, Task<T> task) {
    std::optional<T> result;
    Task<> root = store(std::move(task), result);
    drive(root, steps);
    return result;
  }
  bool run_at_most(std::uint64_t steps, Task<> task) {
    bool done = false;
    Task<> root = note(std::move(task), done);
    drive(root, steps);
    return done;
  }

  /// Process death: forgets every waiter, timer and posted coroutine without a touch (their owners
  /// have destroyed them), closes its files, and leaves its operations to land or not (sim_host.h).
  void kill();

  void set_steps_max(std::uint64_t steps) { steps_max_ = steps; }
  std::uint64_t steps() const { return scheduler_->steps; }
  std::uint64_t seed() const { return scheduler_->seed(); }
  /// Equal for two runs that went the same way.
  std::uint64_t trace_hash() const { return scheduler_->trace_hash; }
  /// "seed 7, step 1234, 1.5 s: 2 operations in flight, ...", for messages.
  std::string describe() const;

  SimScheduler& scheduler() { return *scheduler_; }
  SimHost& host() { return host_; }

 private:
  friend class SimHost;
  struct Timer;
  struct Offload;

  template <typename T>
  static Task<> store(Task<T> task, std::optional<T>& into) {
    into.emplace(co_await task);
  }
  static Task<> note(Task<> task, bool& done) {
    co_await task;
    done = true;
  }
  void drive(Task<>& root, std::uint64_t steps);
  [[noreturn]] void report_hang() const;
  /// The part of kill() that is the loop's own.
  void forget();

  SimHost& host_;
  std::shared_ptr<SimScheduler> scheduler_;
  std::deque<std::coroutine_handle<>> ready_;
  std::unordered_map<TimerRequest*, std::unique_ptr<Timer>> timers_;
  std::vector<std::unique_ptr<Offload>> offloads_;
  std::uint64_t steps_max_ = 2'000'000;
};

}  // namespace berth
