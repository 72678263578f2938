// The terminal on a descriptor: raw in between, afterwards as it was.
#pragma once

#include <utility>

#include <termios.h>
#include <unistd.h>

namespace berth::control::cli {

class Terminal {
 public:
  explicit Terminal(int fd) : fd_(fd) { is_one_ = ::tcgetattr(fd_, &before_) == 0; }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  ~Terminal() { restore(); }

  bool is_one() const { return is_one_; }
  void make_raw() {
    if (!is_one_) return;
    termios raw = before_;
    ::cfmakeraw(&raw);
    is_raw_ = ::tcsetattr(fd_, TCSANOW, &raw) == 0;
  }
  /// Does not wait for output: a terminal that takes none is to be left as well. What was typed and
  /// not read was for the guest, not for the shell.
  void restore() {
    if (!std::exchange(is_raw_, false)) return;
    ::tcflush(fd_, TCIFLUSH);
    ::tcsetattr(fd_, TCSANOW, &before_);
  }

 private:
  int fd_;
  termios before_{};
  bool is_one_ = false;
  bool is_raw_ = false;
};

}  // namespace berth::control::cli
