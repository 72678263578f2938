// What the calling thread has spent: instructions in user space, or where the machine counts none
// (most virtual ones), nanoseconds of CPU. Of the thread that made it.
#pragma once

#include <cstdint>
#include <ctime>

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

namespace berth::bench {

inline std::uint64_t thread_cpu_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

class CostMeter {
 public:
  CostMeter() {
    perf_event_attr attributes{};
    attributes.size = sizeof(attributes);
    attributes.type = PERF_TYPE_HARDWARE;
    attributes.config = PERF_COUNT_HW_INSTRUCTIONS;
    attributes.exclude_kernel = 1;
    attributes.exclude_hv = 1;
    counter_ = Fd(static_cast<int>(
        ::syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)));
    std::uint64_t count = 0;
    if (counter_ &&
        (::read(counter_.get(), &count, sizeof(count)) != sizeof(count) || count == 0)) {
      counter_ = Fd();
    }
  }

  const char* unit() const { return counter_ ? "instructions" : "cpu_ns"; }
  std::uint64_t read() const {
    std::uint64_t count = 0;
    if (counter_ && ::read(counter_.get(), &count, sizeof(count)) == sizeof(count)) return count;
    return thread_cpu_ns();
  }

 private:
  Fd counter_;
};

}  // namespace berth::bench
