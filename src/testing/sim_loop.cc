#include "testing/sim_loop.h"

#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>

#include "testing/sim_host.h"

namespace berth {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// What a step did, for the trace.
enum Step : std::uint64_t {
  step_resumed = 1,
  step_fired = 2,
  step_timer = 3,
  step_offload = 4,
  step_killed = 5
};

/// While coroutines are ready, only what is due so soon may overtake them.
constexpr Duration overtaking_max = milliseconds(1);

}  // namespace

struct SimLoop::Timer final : SimEvent {
  Timer(SimLoop& on, TimerRequest& of) : loop(on), request(of) {}
  void fire() override {
    loop.scheduler_->trace(step_timer, 0);
    request.armed = false;
    loop.post(request.waiter);
    loop.timers_.erase(&request);  // deletes this
  }
  SimLoop& loop;
  TimerRequest& request;
};

struct SimLoop::Offload final : SimEvent {
  Offload(SimLoop& on, OffloadRequest& of) : loop(on), request(of) {}
  void fire() override {
    loop.scheduler_->trace(step_offload, 0);
    request.run(request);
    loop.post(request.waiter);
    std::erase_if(loop.offloads_, [this](const auto& other) { return other.get() == this; });
  }
  SimLoop& loop;
  OffloadRequest& request;
};

SimLoop::SimLoop(SimHost& host, std::uint64_t seed)
    : host_(host), scheduler_(std::make_shared<SimScheduler>(seed)) {
  scheduler_->loops.push_back(this);
  host_.attach(*this);
}

SimLoop::SimLoop(SimHost& host, SimLoop& beside) : host_(host), scheduler_(beside.scheduler_) {
  scheduler_->loops.push_back(this);
  host_.attach(*this);
}

SimLoop::~SimLoop() {
  kill();
  host_.detach(*this);
  std::erase(scheduler_->loops, this);
}

std::chrono::system_clock::time_point SimLoop::wall_time() const {
  return sim_wall_time(scheduler_->now);
}

void SimLoop::add_timer(TimerRequest& timer) {
  auto& random = scheduler_->random;
  const Duration late =
      random.one_in(8) ? microseconds(random.below(1000)) : microseconds(random.below(50));
  auto& added = timers_[&timer] = std::make_unique<Timer>(*this, timer);
  timer.armed = true;
  scheduler_->schedule(*added, std::max(timer.deadline, scheduler_->now) + late);
}

void SimLoop::remove_timer(TimerRequest& timer) {
  if (timers_.erase(&timer) != 0) timer.armed = false;
}

void SimLoop::submit_offload(OffloadRequest& request) {
  auto& random = scheduler_->random;
  const Duration takes = microseconds(random.one_in(16) ? random.below(5000) : random.below(100));
  offloads_.push_back(std::make_unique<Offload>(*this, request));
  scheduler_->schedule(*offloads_.back(), scheduler_->now + takes);
}

bool SimLoop::run_one_step() {
  SimScheduler& scheduler = *scheduler_;
  ++scheduler.steps;
  SimLoop* ready = nullptr;
  std::uint64_t ready_count = 0;
  for (SimLoop* loop : scheduler.loops) {
    if (!loop->ready_.empty() && scheduler.random.one_in(++ready_count)) ready = loop;
  }
  const bool may_overtake =
      ready == nullptr ||
      (scheduler.has_events() && scheduler.next_due() <= scheduler.now + overtaking_max &&
       scheduler.random.one_in(8));
  if (may_overtake) {
    if (!scheduler.has_events()) return false;
    scheduler.fire_next();
    scheduler.trace(step_fired,
                    static_cast<std::uint64_t>(scheduler.now.time_since_epoch().count()));
    return true;
  }
  const std::coroutine_handle<> next = ready->ready_.front();
  ready->ready_.pop_front();
  scheduler.trace(step_resumed, ready->ready_.size());
  next.resume();
  return true;
}

bool SimLoop::run_until_idle() {
  const std::uint64_t limit = scheduler_->steps + steps_max_;
  while (scheduler_->steps < limit) {
    if (!run_one_step()) return true;
  }
  return false;
}

void SimLoop::drive(Task<>& root, std::uint64_t steps) {
  const std::coroutine_handle<> handle = root.await_suspend(std::noop_coroutine());
  handle.resume();
  while (!handle.done() && steps-- != 0 && run_one_step()) {
  }
}

void SimLoop::forget() {
  ready_.clear();
  timers_.clear();
  offloads_.clear();
  scheduler_->trace(step_killed, scheduler_->steps);
}

void SimLoop::kill() {
  forget();
  host_.process_died(*this);
}

std::string SimLoop::describe() const {
  return fmt::format("seed {}, step {}, {:.6f} s: {} coroutines ready, {} timers, {} offloads, {}",
                     seed(), scheduler_->steps,
                     std::chrono::duration<double>(scheduler_->now.time_since_epoch()).count(),
                     ready_.size(), timers_.size(), offloads_.size(), host_.describe());
}

void SimLoop::report_hang() const {
  std::fputs(fmt::format("simulation hangs: {}\n", describe()).c_str(), stderr);
  std::abort();
}

}  // namespace berth
