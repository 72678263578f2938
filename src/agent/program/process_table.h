// The processes that a host has asked for, from their start until it forgets them, and everybody
// else's children: what ends is reaped, whoever its parent was.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include <sys/types.h>

#include "agent/program/child.h"
#include "agent/program/event_loop.h"
#include "agent/program/pump.h"
#include "agent/session.h"

namespace berth::agent {

class ProcessTable {
 public:
  /// Whether a child that has ended is known elsewhere.
  using Other = std::function<bool(pid_t pid, int status)>;

  /// `cgroup`: which processes join; or -1.
  ProcessTable(EventLoop& loop, Session& session, int cgroup)
      : loop_(loop), session_(session), cgroup_(cgroup) {}

  /// The answer to `request` is sent when the program runs, or cannot.
  Result<void> start(std::uint32_t request, const Fields& fields);
  Result<void> send_signal(const Fields& fields);
  Result<void> resize(const Fields& fields);
  Result<void> forget(const Fields& fields);
  /// Of all processes; each begins with its number.
  void list(FieldWriter& answer) const;

  /// Call it on SIGCHLD. Sends the events; asks `other` about children that are no processes.
  void reap(const Other& other);
  /// Call it when something is new about the stream.
  void stream_changed(std::uint32_t stream);

  /// How long the guest goes on without a host once its main process has ended; nothing while it
  /// has not.
  std::optional<std::uint64_t> linger_ms() const { return linger_ms_; }

 private:
  struct Process {
    std::uint32_t number = 0;
    ChildSpec spec;
    pid_t pid = -1;
    bool is_main = false;
    std::uint64_t linger_ms = 0;
    std::optional<std::uint32_t> start_request;  // not answered so far
    Fd report;
    Fd terminal_kept;
    std::vector<std::unique_ptr<Pump>> pumps;
    std::optional<int> end;  // as of waitpid(2)
  };

  Result<Process*> find(const Fields& fields);
  Result<void> open_streams(Process& process, Child& child);
  void read_report(std::uint32_t number);
  void finish(Process& process, int status);
  void remove(std::uint32_t number);

  EventLoop& loop_;
  Session& session_;
  int cgroup_;
  std::map<std::uint32_t, Process> processes_;
  std::optional<std::uint64_t> linger_ms_;
  std::uint64_t orphans_reaped_ = 0;
};

}  // namespace berth::agent
