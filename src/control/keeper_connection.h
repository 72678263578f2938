// A client of one keeper's control socket (docs/formats/keeper-control.md).
//
// On the control plane's thread. Any number of calls may be open; when the connection ends, each of
// them ends with `disconnected`. A peer that breaks the protocol is disconnected.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include <sys/types.h>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"

namespace berth::machine {
struct ControlProgress;
}

namespace berth::control {

struct CallOptions {
  Milliseconds timeout{30'000};  // 0: none
  std::stop_token stop;          // asks the keeper to end the call; its answer says how it ended
  std::function<void(const machine::ControlProgress&)> progress;  // may be empty
};

/// What answers a keeper's methods. The seam between the logic of cuts and the socket.
class KeeperChannel {
 public:
  virtual ~KeeperChannel() = default;
  /// `timed_out` if no answer came in time: whether the keeper has done it is then unknown.
  virtual Async<Result<nlohmann::json>> call(std::string method, nlohmann::json params,
                                             CallOptions options) = 0;
};

class KeeperConnection final : public KeeperChannel {
 public:
  using EventHandler = std::function<void(std::string event, std::string message)>;

  /// `disconnected` if nobody listens there.
  static Async<Result<std::shared_ptr<KeeperConnection>>> connect(std::string socket_path);
  ~KeeperConnection() override;

  Async<Result<nlohmann::json>> call(std::string method, nlohmann::json params,
                                     CallOptions options) override;

  void set_event_handler(EventHandler handler);
  /// The same, and unless `heard`, first what the keeper had to report before we were connected,
  /// which is in its answer to `hello`: most of it comes while it starts.
  void hear(const nlohmann::json& hello, bool& heard, EventHandler handler);
  /// Process id of the process that listens, as the kernel knows it.
  Result<pid_t> peer_pid() const;
  bool is_open() const;
  /// Of a keeper that has ended: until what it had said is heard, and its end of this is closed; or
  /// for `patience`.
  Async<void> heard_out(Milliseconds patience);
  void close();

 private:
  struct Impl;
  explicit KeeperConnection(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace berth::control
