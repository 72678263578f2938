// UringOperation: something that a UringLoop has the kernel do.
#pragma once

#include <cstdint>

struct io_uring_sqe;

namespace berth {

/// Stays where it is from UringLoop::start() until complete() is called, on the loop's thread.
class UringOperation {
 public:
  UringOperation() = default;
  UringOperation(const UringOperation&) = delete;
  UringOperation& operator=(const UringOperation&) = delete;

  /// Fills in `entry` with an io_uring_prep_ function, but for its user_data.
  virtual void prepare(io_uring_sqe& entry) = 0;
  /// The kernel is done: `result` is what it said, -errno on failure. May start the operation
  /// again.
  virtual void complete(int result) = 0;

 protected:
  ~UringOperation() = default;

 private:
  friend class UringLoop;
  enum class Stage : std::uint8_t { idle, queued, in_flight };
  UringOperation* next_ = nullptr;
  Stage stage_ = Stage::idle;
};

}  // namespace berth
