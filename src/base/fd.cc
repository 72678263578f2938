#include "base/fd.h"

#include <fcntl.h>
#include <unistd.h>

namespace berth {

void Fd::reset() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

std::vector<Fd> take_inherited(const std::vector<int>& numbers) {
  std::vector<Fd> owned;
  for (const int number : numbers)
    if (::fcntl(number, F_SETFD, FD_CLOEXEC) == 0) owned.emplace_back(number);
  return owned;
}

}  // namespace berth
