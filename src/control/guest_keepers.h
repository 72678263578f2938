// The keepers of guests, machines' or containers': started on demand, found again when the daemon
// starts, given a new one when one dies, and the sockets on which a guest's disks are served to it.
// What a guest is, and what is to be done for it, is the matter of machines.h and containers.h.
//
// On the control plane's thread. When it goes, keepers and QEMUs stay.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"
#include "control/events.h"
#include "control/keeper_connection.h"
#include "control/keeper_process.h"
#include "control/keepers.h"
#include "machine/vm/machine_store.h"

namespace berth::control {

struct GuestPolicy {
  std::string program;  // what is executed as `PROGRAM keeper …`
  std::string state_dir;
  std::string run_dir;
  std::string memory_dir;
  std::string preload;  // "" where memory is not tracked
};

/// What is different with each kind of guests.
struct GuestKind {
  std::string noun;           // "machine"
  std::string is_off;         // "is not running", for messages
  std::string directory;      // RUN_DIR/machines: each has one of its own in there
  std::string log_name;       // of its keeper, in that
  Milliseconds end_patience;  // of a keeper whose guest has ended
  EventSubject (*subject)(const std::string& name);
};

/// One guest, as far as it has a keeper.
struct GuestKeeper {
  GuestKeeper(const Executor& executor, std::string name)
      : name(std::move(name)), mutex(executor), process_ended(executor) {}
  bool is_open() const { return connection && connection->is_open() && alive; }

  std::string name;
  AsyncMutex mutex;  // held while it is started, ended, changed
  std::shared_ptr<KeeperConnection> connection;
  KeeperProcess process;
  std::uint64_t generation = 0;
  bool alive = false;
  bool heard = false;
  bool opening = false;
  std::string last_end;  // of its keeper's process, "" where nobody knows
  Wakeup process_ended;
};

class GuestKeepers {
 public:
  using Guest = std::shared_ptr<GuestKeeper>;
  /// Frees what a guest had that has ended; false: it has not. With its lock held.
  using Release = std::function<Async<bool>(std::string name)>;

  GuestKeepers(Executor executor, GuestPolicy policy, GuestKind kind, Keepers& keepers,
               EventLog& events, Release release_ended);

  const GuestPolicy& policy() const { return policy_; }
  Guest of(const std::string& name);
  /// All that were asked for so far.
  const std::map<std::string, Guest>& all() const { return guests_; }

  /// `precondition` where it does not run.
  Result<std::shared_ptr<KeeperConnection>> connection(const std::string& name) const;
  /// The same; waits for a keeper that is away for an instant, while the guest runs.
  Async<Result<std::shared_ptr<KeeperConnection>>> find_connection(std::string name);
  bool is_on(const std::string& name) const { return connection(name).has_value(); }
  Async<Result<nlohmann::json>> call(std::string name, std::string method, nlohmann::json params,
                                     CallOptions options);
  /// Whether one runs, or has ended without its keeper's knowledge.
  bool has_qemu(const std::string& name) const;

  // With the guest's lock held:

  /// `listen_fds`: listening sockets that its keeper goes on with.
  Async<Result<void>> launch(Guest guest, std::vector<int> listen_fds = {});
  /// When the daemon starts: finds its keeper, or starts one for a QEMU that has lost its own;
  /// false where there is neither.
  Async<bool> take_over(Guest guest);
  /// After a start that failed: its keeper ends, and a QEMU that this leaves gets another one.
  /// Whether there is such a QEMU.
  Async<bool> give_up(Guest guest);

  Async<void> await_end(Guest guest);

  /// With both locks held: what `from` has is that of `to`, its directory too. `from` has nothing
  /// any more.
  Result<void> hand_over(Guest from, Guest to);
  /// Those whose directories are there, whatever is in them.
  std::vector<std::string> directories() const;
  void forget(const std::string& name) { guests_.erase(name); }

  /// Serves a volume to its QEMU, where `disk` is called: the same with its socket.
  Async<Result<machine::AttachedDisk>> serve(std::string name, machine::AttachedDisk disk,
                                             std::uint32_t uid);
  Async<void> unserve(std::string name, std::string node, std::string volume);

  bool is_quitting() const { return quitting_; }
  void quit();

 private:
  Async<Result<void>> attach(Guest guest);
  Async<void> watch_process(Guest guest, std::uint64_t generation);
  Async<void> keep(Guest guest);
  void hear(GuestKeeper& guest, KeeperConnection& connection, const nlohmann::json& hello);
  std::string directory(const std::string& name) const;
  std::string log_path(const std::string& name) const;
  std::string disk_socket(const std::string& name, const std::string& node) const;

  Executor executor_;
  const GuestPolicy policy_;
  const GuestKind kind_;
  Keepers& keepers_;
  EventLog& events_;
  const Release release_ended_;
  std::map<std::string, Guest> guests_;
  bool quitting_ = false;
};

}  // namespace berth::control
