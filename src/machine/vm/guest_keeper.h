// What the keepers of guests have in common, a machine's and a container's: their name, their
// control socket, and how long they live.
//
// A keeper has its guest's name (a lock) and its control socket; it goes on with what an earlier
// one has left, keeps its guest until that has ended, or until somebody asks it to go, after which
// the guest's QEMU runs on. It keeps the logs of QEMU short meanwhile. On one loop.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/signals.h"
#include "async/uring_loop.h"
#include "base/fd.h"
#include "machine/control_server.h"
#include "machine/keeper_events.h"

namespace berth::machine {

class GuestKeeper {
 public:
  struct Identity {
    std::string noun;  // "machine"
    std::string name;
    std::string directory;  // its own, below the run directory; made if it is missing
    std::string lock_file;
    std::string control_socket;
  };

  GuestKeeper(UringLoop& loop, Signals& signals, Identity identity);
  GuestKeeper(const GuestKeeper&) = delete;
  GuestKeeper& operator=(const GuestKeeper&) = delete;
  virtual ~GuestKeeper() = default;

  /// `in_use` where another keeper has the name.
  Task<Result<void>> run();

 protected:
  /// Listeners besides the control socket.
  virtual Result<void> serve_others() { return {}; }
  /// Goes on with what an earlier keeper has left; whether there was anything, which may have
  /// ended.
  virtual Task<Result<bool>> adopt() = 0;
  virtual bool is_on() const = 0;
  /// Until something about it has changed.
  virtual Task<> guest_changed() = 0;
  /// Requests are answered from now on.
  virtual void open() = 0;
  /// The guest has ended: until everybody has heard of it who has to.
  virtual Task<> everybody_heard() { co_return; }
  /// Files that QEMU appends to.
  virtual std::vector<std::string> logs() const = 0;
  /// Nobody is answered any more, and what they had asked for is undone.
  virtual Task<> close_clients() = 0;
  /// Lets go of the guest.
  virtual Task<> close_guest() = 0;

  /// It keeps the guest of this name from now on; its directory, and all in it, were renamed.
  void rename(Identity identity) { identity_ = std::move(identity); }
  void report(const char* event, std::string message);
  UringLoop& loop() { return loop_; }
  ControlServer& server() { return server_; }
  Gate& tasks() { return tasks_; }
  const std::string& name() const { return identity_.name; }

 private:
  Result<void> take_name();
  Result<void> serve_control();
  Task<> watch_signals();
  Task<> watch_guest();
  Task<> watch_patience();
  Task<> watch_logs();
  void request_stop(const std::string& by);
  Task<> say_goodbye();
  Task<Result<Json>> hello();
  Task<Result<Json>> shutdown();

  UringLoop& loop_;
  Signals& signals_;
  Identity identity_;
  const std::chrono::system_clock::time_point started_at_;
  Fd lock_;
  Gate tasks_;
  Event moved_;
  bool stopping_ = false;
  bool is_open_ = false;
  bool is_over_ = false;  // what it was to go on with had ended
  Result<void> outcome_;
  ControlServer server_;
  KeeperEvents events_;
};

/// The process: one loop, SIGTERM and SIGINT. Its exit code: 0 after a clean end, 1 with one
/// message on standard error otherwise.
int run_guest_keeper(const std::string& noun, const std::string& name,
                     const std::function<std::unique_ptr<GuestKeeper>(UringLoop&, Signals&)>& make);

}  // namespace berth::machine
