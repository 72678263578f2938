// Gate: owns tasks that nobody awaits, counts them, and lets an owner wait until they have ended.
// Lives on one loop. Destroying a gate with tasks in it is a mistake (CHECK).
#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <vector>

#include "async/loop.h"
#include "async/task.h"

namespace berth {

class Gate {
 public:
  explicit Gate(Loop& loop) : loop_(loop) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate();

  /// Starts the task now; the gate owns it until it ends.
  void spawn(Task<> task);

  std::size_t size() const { return count_; }

  /// Ends when no task is left. Tasks may still be spawned meanwhile; they are waited for too.
  Task<> drained();

  /// Destroys every task where it stands: process death, in simulations.
  void abandon();

 private:
  struct Root;
  struct RootPromise;
  static Root run(Gate& gate, Task<> task);
  void link(RootPromise& promise);
  void unlink(RootPromise& promise);

  Loop& loop_;
  RootPromise* first_ = nullptr;
  std::size_t count_ = 0;
  std::vector<std::coroutine_handle<>> waiters_;
};

}  // namespace berth
