// Serves the port: moves its bytes, answers requests, and decides when the guest ends.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "agent/program/clone.h"
#include "agent/program/connection_table.h"
#include "agent/program/disks.h"
#include "agent/program/event_loop.h"
#include "agent/program/process_table.h"
#include "agent/program/transfer_table.h"
#include "agent/program/workload.h"
#include "agent/session.h"
#include "base/fd.h"

namespace berth::agent {

class Server {
 public:
  /// `boot_error`: why the guest is not in its image, or "". Then nothing can be started in it.
  Server(EventLoop& loop, Fd port, std::string boot_error);
  /// Where hosts connect, in place of a port: one after the other.
  struct Listener {
    Fd socket;  // not blocking
  };
  Server(EventLoop& loop, Listener listener);

  /// Until the guest is to be powered off: nothing that the host started runs any more, or it would
  /// not end.
  void run();

 private:
  using Clock = std::chrono::steady_clock;

  void watch_port();
  void accept_host();
  void drop_host();
  void watch_children();
  void set_welcome();
  void pump_port();
  void read_port();
  void write_port();
  void take_messages();
  void take_request(const Message& message);
  Result<void> serve(const Message& message, const Fields& fields, FieldWriter& answer,
                     bool& is_answered);
  Result<void> serve_workload(const Message& message, const Fields& fields, bool& is_answered);
  Result<void> close_stream(const Fields& fields);
  Result<void> begin_power_off(const Fields& fields);
  void look_at_the_time();
  std::optional<std::chrono::milliseconds> time_left() const;

  EventLoop& loop_;
  Fd port_;      // with a listener: of the host that is there, if one is
  Fd listener_;  // where there is one
  std::string boot_error_;
  Session session_{Session::Role::agent};
  Workload workload_{loop_};
  ProcessTable processes_{loop_, session_, workload_.cgroup()};
  Clone clone_{loop_, workload_};
  ConnectionTable connections_{loop_, session_};
  TransferTable transfers_{loop_, session_};
  Mounts mounts_;
  Fd children_;  // signalfd
  bool may_accept_ = true;
  bool may_read_ = true;
  bool may_write_ = true;
  bool is_host_there_ = false;
  bool is_killed_ = false;  // what would not end
  bool is_over_ = false;
  std::optional<Clock::time_point> ends_at_;  // when a power-off waits no more
  std::optional<Clock::time_point>
      alone_since_;  // the main process has ended, and there is no host
};

}  // namespace berth::agent
