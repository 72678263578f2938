#include "agent/program/workload.h"

#include <array>
#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

constexpr int rehearsal_turns_max = 40;
constexpr int adopt_rounds_max = 100;  // who forks while it is moved is seen in the next one

Fd make_cgroup(const char* path) {
  ::mkdir(path, 0755);
  return Fd(::open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

Result<Fd> open_in(const Fd& cgroup, const char* name, int flags) {
  if (!cgroup) return failure(ErrorKind::unsupported, "the guest's kernel has no cgroups");
  Fd file(::openat(cgroup.get(), name, flags | O_CLOEXEC));
  if (!file) return errno_failure(errno, std::string("cannot open ") + name);
  return file;
}

Result<void> set(const Fd& cgroup, const char* name, std::string_view value) {
  const Fd file = TRY(open_in(cgroup, name, O_WRONLY));
  return write_all(file.get(), as_bytes(value));
}

/// cgroups(7), "cgroup.events": a line "frozen 1" when everybody is.
bool says_frozen(const Fd& events) {
  std::array<char, 256> text{};
  const ssize_t count = ::pread(events.get(), text.data(), text.size(), 0);
  return count > 0 &&
         std::string_view(text.data(), static_cast<std::size_t>(count)).contains("frozen 1");
}

}  // namespace

Workload::Workload(EventLoop& loop)
    : loop_(loop),
      workload_(make_cgroup("/sys/fs/cgroup/container")),
      hooks_(make_cgroup("/sys/fs/cgroup/clone-hooks")),
      rehearsal_(make_cgroup("/sys/fs/cgroup/clone-rehearsal")) {}

Result<void> Workload::freeze(std::chrono::milliseconds limit, Done done) {
  if (state_ == State::freezing) return failure(ErrorKind::in_use, "it is being frozen already");
  if (state_ == State::frozen) {
    done({});
    return {};
  }
  events_ = TRY(open_in(workload_, "cgroup.events", O_RDONLY));
  deadline_ = TRY(Timer::start(loop_, limit, [this] {
    (void)set_frozen(false);
    finish(State::running, failure(ErrorKind::timed_out, "a process could not be frozen in time"));
  }));
  if (auto written = set_frozen(true); !written) {
    deadline_.reset();
    return written;
  }
  state_ = State::freezing;
  done_ = std::move(done);
  loop_.watch(events_.get(), EPOLLPRI, [this](std::uint32_t) { look_at_events(); });
  look_at_events();
  return {};
}

/// The file stays open: a clone, whose emulated CPU has nothing translated yet, need not find it.
Result<void> Workload::set_frozen(bool frozen) {
  if (!switch_) switch_ = TRY(open_in(workload_, "cgroup.freeze", O_WRONLY));
  return write_all(switch_.get(), as_bytes(std::string_view(frozen ? "1" : "0")));
}

void Workload::look_at_events() {
  // Where it cannot be known the deadline ends it.
  if (says_frozen(events_)) finish(State::frozen, {});
}

void Workload::finish(State state, Result<void> result) {
  state_ = state;
  loop_.forget(events_.get());
  events_.reset();
  deadline_.reset();
  if (const Done done = std::exchange(done_, nullptr)) done(std::move(result));
}

Result<void> Workload::thaw() {
  TRY(set_frozen(false));
  if (state_ == State::freezing) {
    finish(State::running, failure(ErrorKind::cancelled, "it was thawed before that"));
  }
  state_ = State::running;
  return {};
}

void Workload::rehearse(pid_t process) {
  if (!set(rehearsal_, "cgroup.procs", std::to_string(process))) return;
  const auto events = open_in(rehearsal_, "cgroup.events", O_RDONLY);
  if (!events) return;
  (void)set(rehearsal_, "cgroup.freeze", "1");
  for (int turn = 0; turn < rehearsal_turns_max && !says_frozen(*events); ++turn) ::usleep(500);
  (void)set(rehearsal_, "cgroup.freeze", "0");
}

Result<void> Workload::adopt_hooks() {
  if (!hooks_) return {};
  for (int round = 0; round < adopt_rounds_max; ++round) {
    const Fd list = TRY(open_in(hooks_, "cgroup.procs", O_RDONLY));
    std::array<char, 4096> text{};
    const ssize_t count = ::read(list.get(), text.data(), text.size());
    if (count < 0) return errno_failure(errno, "cannot see what the hooks have left");
    if (count == 0) return {};
    const std::string_view pids(text.data(), static_cast<std::size_t>(count));
    for (std::size_t begin = 0; begin < pids.size();) {
      const std::size_t end = std::min(pids.find('\n', begin), pids.size());
      // One that has ended meanwhile is not there in the next round.
      (void)set(workload_, "cgroup.procs", pids.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return failure(ErrorKind::limit, "the hooks have left too many processes");
}

void Workload::kill_hooks() {
  if (hooks_) (void)set(hooks_, "cgroup.kill", "1");
}

}  // namespace berth::agent
