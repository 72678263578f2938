#include "async/offload_pool.h"

#include <utility>

#include <pthread.h>
#include <signal.h>

namespace berth {

OffloadPool::OffloadPool(unsigned thread_count, std::function<void(OffloadRequest&)> finished)
    : finished_(std::move(finished)) {
  // Signals are the business of the threads that were there before.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  for (unsigned i = 0; i < thread_count; ++i) {
    threads_.emplace_back([this] { work(); });
    ::pthread_setname_np(threads_.back().native_handle(), "berth-offload");
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

OffloadPool::~OffloadPool() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  work_or_stop_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void OffloadPool::submit(OffloadRequest& request) {
  request.next = nullptr;
  {
    const std::scoped_lock lock(mutex_);
    (first_ == nullptr ? first_ : last_->next) = &request;
    last_ = &request;
  }
  work_or_stop_.notify_one();
}

void OffloadPool::work() {
  while (true) {
    OffloadRequest* request = nullptr;
    {
      std::unique_lock lock(mutex_);
      work_or_stop_.wait(lock, [this] { return first_ != nullptr || stop_; });
      if (first_ == nullptr) return;
      request = std::exchange(first_, first_->next);
    }
    request->run(*request);
    finished_(*request);
  }
}

}  // namespace berth
