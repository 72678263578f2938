// Container: since when nobody has wanted anything of it.

#include <ctime>
#include <utility>

#include "async/deadline.h"
#include "base/units.h"
#include "container/container.h"

namespace berth::container {
namespace {

/// Of all threads of a process, those that have ended too; nothing where it is gone.
std::optional<Duration> cpu_time_of(pid_t pid) {
  clockid_t clock{};
  timespec time{};
  if (pid <= 0 || ::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0)
    return std::nullopt;
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace

void Container::touch() { idle_.touch(loop_.now()); }

Container::Use::Use(Container& container) : container_(container) {
  ++container_.uses_;
  container_.touch();
}

Container::Use::~Use() {
  --container_.uses_;
  container_.touch();
}

Duration Container::idle() const {
  if (uses_ > 0 || !processes_.empty()) return Duration::zero();
  return idle_.idle(loop_.now());
}

/// Of its QEMU, or of all of its processes where they are in the host's kernel.
std::optional<Duration> Container::cpu_time() const {
  if (microvm_ != nullptr) return cpu_time_of(machine_->pid());
  const auto taken = machine_->usage().cpu_us;
  return taken ? std::optional<Duration>(std::chrono::microseconds(*taken)) : std::nullopt;
}

/// As long as it is there.
Task<> Container::watch_idle() {
  touch();
  idle_.forget_sample();
  while (is_on() && !closing_) {
    if (is_paused()) {
      idle_.forget_sample();
    } else if (const auto taken = cpu_time()) {
      idle_.sample(loop_.now(), *taken);
    }
    Deadline deadline(loop_, idle_window, [this] { changed_.notify_all(); });
    while (is_on() && !closing_ && !deadline.expired()) co_await changed_.wait();
    co_await deadline.stop();
  }
}

void Container::add_idle(machine::Json& info) const {
  const Duration idle = this->idle();
  info["idle_ms"] = std::chrono::duration_cast<std::chrono::milliseconds>(idle).count();
  info["idle_since"] = format_time(
      loop_.wall_time() - std::chrono::duration_cast<std::chrono::system_clock::duration>(idle));
}

}  // namespace berth::container
