#include "async/uring_loop.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include <liburing.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/offload_pool.h"

namespace berth {
namespace {

constexpr unsigned submission_entries = 256;
// Room for the answers to cancellations too: the completion queue cannot overflow.
constexpr unsigned completion_entries = 2 * UringLoop::operations_max;
// What one coroutine after the other starts goes to the kernel together, but no more than this at a
// time.
constexpr unsigned submission_batch_max = 32;
// So that completions do not starve timers.
constexpr unsigned completions_per_turn_max = 256;

// What the kernel may be asked for, best first. Work of completions is done when the loop waits,
// not in interrupts of what it does (6.1); failing that, at the next system call (5.19).
constexpr std::array ring_flags{
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED |
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    0U,
};

int initialize_ring(io_uring& ring) {
  int outcome = -EINVAL;
  for (const unsigned flags : ring_flags) {
    io_uring_params parameters{};
    parameters.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    parameters.cq_entries = completion_entries;
    outcome = ::io_uring_queue_init_params(submission_entries, &ring, &parameters);
    if (outcome != -EINVAL) break;
  }
  return outcome;
}

__kernel_timespec to_timespec(Duration duration) {
  const auto nanoseconds = std::max<std::int64_t>(duration.count(), 0);
  return {.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000};
}

/// The registration went with the thread that made it; another's must not be undone in its place.
void forget_registration(io_uring& ring) {
  ring.enter_ring_fd = ring.ring_fd;
  ring.int_flags = 0;
}

}  // namespace

/// A read of the eventfd that is always under way, so that other threads can end a wait.
class UringLoop::Wakeup final : public UringOperation {
 public:
  explicit Wakeup(UringLoop& loop) : loop_(loop) {}

  void prepare(io_uring_sqe& entry) override {
    ::io_uring_prep_read(&entry, loop_.wakeup_fd_.get(), &count_, sizeof count_, 0);
  }
  void complete(int result) override {
    if (result == -ECANCELED || loop_.closing_) return;
    loop_.empty_inbox();
    loop_.start(*this);
  }

 private:
  UringLoop& loop_;
  std::uint64_t count_ = 0;
};

Result<std::unique_ptr<UringLoop>> UringLoop::create() { return create(Options{}); }

Result<std::unique_ptr<UringLoop>> UringLoop::create(Options options) {
  if (options.offload_threads == 0 || options.offload_threads > offload_threads_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("a loop has 1 to {} offload threads, not {}", offload_threads_max,
                               options.offload_threads));
  }
  std::unique_ptr<UringLoop> loop(new UringLoop(options));
  TRY(loop->set_up());
  return loop;
}

UringLoop::UringLoop(Options options)
    : options_(options),
      ring_(std::make_unique<io_uring>()),
      wakeup_(std::make_unique<Wakeup>(*this)) {}

Result<void> UringLoop::set_up() {
  wakeup_fd_ = Fd(::eventfd(0, EFD_CLOEXEC));
  if (!wakeup_fd_) return errno_failure(errno, "cannot create an eventfd");
  if (const int outcome = initialize_ring(*ring_); outcome < 0) {
    return errno_failure(
        -outcome,
        "cannot set up io_uring (it needs Linux 5.19; the sysctl kernel.io_uring_disabled "
        "and the seccomp filters of containers can forbid it)");
  }
  ring_is_set_up_ = true;
  return {};
}

UringLoop::~UringLoop() {
  pool_.reset();
  if (!ring_is_set_up_) return;
  if (thread_ == std::this_thread::get_id()) {
    drain_operations();
  } else {
    CHECK(in_flight_ <= 1);  // the wakeup
    forget_registration(*ring_);
  }
  ::io_uring_queue_exit(ring_.get());
}

void UringLoop::bind_to_this_thread() {
  if (thread_ == std::this_thread::get_id()) return;
  CHECK(thread_ == std::thread::id{});
  thread_ = std::this_thread::get_id();
  if ((ring_->flags & IORING_SETUP_R_DISABLED) != 0) {
    // liburing 2.3 declares io_uring_enable_rings and does not export it.
    CHECK(::syscall(SYS_io_uring_register, ring_->ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr,
                    0) == 0);
  }
  // Saves a reference count in every system call; one that is refused does not matter.
  static_cast<void>(::io_uring_register_ring_fd(ring_.get()));
  start(*wakeup_);
}

void UringLoop::run() {
  run_until(stop_);
  stop_ = false;
}

void UringLoop::stop() {
  const std::scoped_lock lock(inbox_mutex_);
  inbox_stop_ = true;
  wake();
}

void UringLoop::run_until(const bool& done) {
  bind_to_this_thread();
  while (!done) {
    reap_completions();
    fire_timers();
    if (queue_first_ != nullptr) start_queued();
    run_ready();
    if (ready_.empty() && urgent_.empty() && !done) {
      wait_for_completion();
    } else {
      submit();
    }
  }
  submit();
}

/// What is ready now; what that makes ready has its turn after completions and timers have had
/// theirs. Ends early when the kernel has news.
void UringLoop::run_ready() {
  run_urgent();
  for (std::size_t count = ready_.size(); count > 0; --count) {
    const std::coroutine_handle<> waiter = ready_.front();
    ready_.pop_front();
    waiter.resume();
    if (has_news() || ::io_uring_sq_ready(ring_.get()) != 0) return;
  }
}

void UringLoop::run_urgent() {
  for (std::size_t count = urgent_.size(); count > 0; --count) {
    const std::coroutine_handle<> waiter = urgent_.front();
    urgent_.pop_front();
    waiter.resume();
  }
}

/// Whether a completion waits to be seen, or to be made by our next system call.
bool UringLoop::has_news() const {
  return ::io_uring_cq_ready(ring_.get()) != 0 || has_task_work();
}

bool UringLoop::has_task_work() const {
  return (IO_URING_READ_ONCE(*ring_->sq.kflags) & IORING_SQ_TASKRUN) != 0;
}

void UringLoop::fire_timers() {
  if (timers_.empty()) return;
  const Instant present = now();
  while (!timers_.empty() && timers_.begin()->first <= present) {
    TimerRequest& timer = *timers_.begin()->second;
    timers_.erase(timers_.begin());
    timer.armed = false;
    post(timer.waiter);
  }
}

void UringLoop::reap_completions() {
  unsigned count = 0;
  while (count < completions_per_turn_max && reap_one()) ++count;
}

/// Tells the next operation that has ended; false if there is none.
bool UringLoop::reap_one() {
  io_uring_cqe* completion = nullptr;
  if (::io_uring_peek_cqe(ring_.get(), &completion) != 0) return false;
  auto* operation = static_cast<UringOperation*>(::io_uring_cqe_get_data(completion));
  const int result = completion->res;
  ::io_uring_cqe_seen(ring_.get(), completion);
  if (operation == nullptr) return true;  // a cancellation that came too late
  --in_flight_;
  operation->stage_ = UringOperation::Stage::idle;
  operation->complete(result);
  return true;
}

void UringLoop::wait_for_completion() {
  io_uring_cqe* completion = nullptr;
  __kernel_timespec timeout{};
  if (!timers_.empty()) timeout = to_timespec(timers_.begin()->first - now());
  const int outcome = ::io_uring_submit_and_wait_timeout(
      ring_.get(), &completion, 1, timers_.empty() ? nullptr : &timeout, nullptr);
  CHECK(outcome >= 0 || outcome == -ETIME || outcome == -EINTR || outcome == -EAGAIN ||
        outcome == -EBUSY);
}

void UringLoop::start(UringOperation& operation) {
  bind_to_this_thread();
  if (queue_first_ == nullptr && give_to_kernel(operation)) return;
  operation.stage_ = UringOperation::Stage::queued;
  operation.next_ = nullptr;
  (queue_first_ == nullptr ? queue_first_ : queue_last_->next_) = &operation;
  queue_last_ = &operation;
}

bool UringLoop::give_to_kernel(UringOperation& operation) {
  if (in_flight_ >= operations_max) return false;
  io_uring_sqe* entry = ::io_uring_get_sqe(ring_.get());
  if (entry == nullptr) return false;
  operation.prepare(*entry);
  ::io_uring_sqe_set_data(entry, &operation);
  operation.stage_ = UringOperation::Stage::in_flight;
  ++in_flight_;
  if (::io_uring_sq_ready(ring_.get()) >= submission_batch_max) submit();
  return true;
}

void UringLoop::start_queued() {
  while (queue_first_ != nullptr) {
    UringOperation& operation = *queue_first_;
    UringOperation* next = operation.next_;
    if (!give_to_kernel(operation)) return;
    queue_first_ = next;
  }
}

void UringLoop::submit() {
  if (::io_uring_sq_ready(ring_.get()) == 0 && !has_task_work()) return;
  int outcome = 0;
  do {
    outcome = ::io_uring_submit_and_get_events(ring_.get());
  } while (outcome == -EINTR);
  // Out of memory for now: the entries stay, and go with the next submission or wait.
  CHECK(outcome >= 0 || outcome == -EAGAIN || outcome == -EBUSY);
}

void UringLoop::cancel(UringOperation& operation) {
  if (operation.stage_ == UringOperation::Stage::idle) return;
  if (operation.stage_ == UringOperation::Stage::queued) {
    UringOperation* before = nullptr;
    for (UringOperation* i = queue_first_; i != &operation; i = i->next_) before = i;
    (before == nullptr ? queue_first_ : before->next_) = operation.next_;
    if (queue_last_ == &operation) queue_last_ = before;
    operation.stage_ = UringOperation::Stage::idle;
    operation.complete(-ECANCELED);
    return;
  }
  io_uring_sqe* entry = nullptr;
  while ((entry = ::io_uring_get_sqe(ring_.get())) == nullptr) {
    submit();
    ::sched_yield();
  }
  ::io_uring_prep_cancel(entry, &operation, 0);
  ::io_uring_sqe_set_data(entry, nullptr);
}

/// Before the ring goes: what the kernel still does with our memory comes to its end.
void UringLoop::drain_operations() {
  closing_ = true;
  while (queue_first_ != nullptr) cancel(*queue_first_);
  submit();
  if (in_flight_ != 0) {
    io_uring_sqe* entry = ::io_uring_get_sqe(ring_.get());
    CHECK(entry != nullptr);
    ::io_uring_prep_cancel(entry, nullptr, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    ::io_uring_sqe_set_data(entry, nullptr);
  }
  while (in_flight_ != 0) {
    static_cast<void>(::io_uring_submit_and_wait(ring_.get(), 1));  // EINTR: again
    while (reap_one()) {
    }
  }
}

void UringLoop::add_timer(TimerRequest& timer) {
  timer.armed = true;
  timers_.emplace(timer.deadline, &timer);
}

void UringLoop::remove_timer(TimerRequest& timer) {
  if (!timer.armed) return;
  auto [first, last] = timers_.equal_range(timer.deadline);
  const auto found =
      std::find_if(first, last, [&timer](const auto& entry) { return entry.second == &timer; });
  CHECK(found != last);
  timers_.erase(found);
  timer.armed = false;
}

void UringLoop::submit_offload(OffloadRequest& request) {
  if (pool_ == nullptr) {
    pool_ =
        std::make_unique<OffloadPool>(options_.offload_threads, [this](OffloadRequest& finished) {
          const std::scoped_lock lock(inbox_mutex_);
          inbox_waiters_.push_back(finished.waiter);
          wake();
        });
  }
  pool_->submit(request);
}

Result<void> UringLoop::post_from_thread(std::move_only_function<void()> call) {
  const std::scoped_lock lock(inbox_mutex_);
  if (inbox_calls_.size() >= posted_calls_max) {
    return failure(ErrorKind::limit,
                   fmt::format("{} calls wait for the loop already", posted_calls_max));
  }
  inbox_calls_.push_back(std::move(call));
  wake();
  return {};
}

/// With inbox_mutex_ held.
void UringLoop::wake() {
  if (inbox_signalled_) return;
  inbox_signalled_ = true;
  const std::uint64_t one = 1;
  CHECK(::write(wakeup_fd_.get(), &one, sizeof one) == sizeof one);
}

void UringLoop::empty_inbox() {
  std::vector<std::move_only_function<void()>> calls;
  {
    const std::scoped_lock lock(inbox_mutex_);
    calls.swap(inbox_calls_);
    for (const auto waiter : inbox_waiters_) post(waiter);
    inbox_waiters_.clear();
    if (std::exchange(inbox_stop_, false)) stop_ = true;
    inbox_signalled_ = false;
  }
  for (auto& call : calls) call();
}

}  // namespace berth
