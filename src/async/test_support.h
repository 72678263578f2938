// For tests: a loop, a directory of their own that goes with them, and runs that end.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <sys/mount.h>

#include <gtest/gtest.h>

#include "async/deadline.h"
#include "async/uring_loop.h"

namespace berth {

class ScratchDirectory {
 public:
  /// In $TMPDIR or /tmp; below `parent` when given.
  explicit ScratchDirectory(const std::string& parent = std::filesystem::temp_directory_path()) {
    path_ = parent + "/berth-test-XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// A tmpfs over a directory, for as long as this lives; "1m" of it, say.
class SmallFileSystem {
 public:
  SmallFileSystem(const std::string& path, const std::string& size) : path_(path) {
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC,
                       ("size=" + size).c_str()) == 0;
  }
  SmallFileSystem(const SmallFileSystem&) = delete;
  SmallFileSystem& operator=(const SmallFileSystem&) = delete;
  ~SmallFileSystem() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

class LoopTest : public testing::Test {
 protected:
  LoopTest() : loop_(MUST(UringLoop::create())) {}
  std::unique_ptr<UringLoop> loop_;
};

/// Long enough for a machine under load; a test that takes it hangs.
constexpr Duration test_time_max = std::chrono::seconds(30);

inline void test_hangs() {
  std::fputs("the test hangs: ending it\n", stderr);
  std::abort();
}

template <typename T>
Task<T> bounded(Loop& loop, Task<T> task) {
  Deadline deadline(loop, test_time_max, test_hangs);
  if constexpr (std::is_void_v<T>) {
    co_await task;
    co_await deadline.stop();
  } else {
    T value = co_await task;
    co_await deadline.stop();
    co_return value;
  }
}

/// Runs the task to its end, under a limit.
template <typename T>
T run(UringLoop& loop, Task<T> task) {
  return loop.run_until_complete(bounded(loop, std::move(task)));
}

/// The same for one that says by its result whether a test could go on.
inline void run_test(UringLoop& loop, Task<Result<void>> task) {
  const auto outcome = run(loop, std::move(task));
  EXPECT_TRUE(outcome.has_value()) << outcome.error().message();
}

}  // namespace berth
