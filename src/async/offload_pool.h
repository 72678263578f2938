// OffloadPool: a few threads that run OffloadRequests in the order of their arrival. Used by
// UringLoop.
//
// Requests live in waiting coroutines, so the queue is as long as there are coroutines that wait,
// and no longer. Every request that was submitted is run, also when the pool is destroyed right
// afterwards.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "async/loop.h"

namespace berth {

class OffloadPool {
 public:
  /// `finished` is called on a pool thread after each request has run.
  OffloadPool(unsigned thread_count, std::function<void(OffloadRequest&)> finished);
  ~OffloadPool();
  OffloadPool(const OffloadPool&) = delete;
  OffloadPool& operator=(const OffloadPool&) = delete;

  /// Any thread.
  void submit(OffloadRequest& request);

 private:
  void work();

  std::function<void(OffloadRequest&)> finished_;
  std::mutex mutex_;
  std::condition_variable work_or_stop_;
  OffloadRequest* first_ = nullptr;
  OffloadRequest* last_ = nullptr;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace berth
