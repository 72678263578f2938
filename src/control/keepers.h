// The keepers of this host: started when a volume is needed, found again when the daemon starts,
// started again when one dies that serves, and ended when nobody has needed theirs for a while
// (DESIGN §3).
//
// On the control plane's thread. The daemon holds a duplicate of every listening NBD socket, so
// that clients of a keeper that died wait in the socket's queue, not in their own retry timers,
// until the next one serves it. When this object goes, keepers stay: they need no daemon.
#pragma once

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

namespace berth::control {

struct KeeperPolicy {
  std::string program;  // what is executed as `PROGRAM keeper …`
  std::string state_dir;
  std::string run_dir;
  Milliseconds idle{
      60'000};  // a keeper that nobody used for so long, and that serves nothing, ends
  Milliseconds start_timeout{120'000};  // opening includes the recovery from a power loss
};

/// What volumes stand on each other, as far as keepers need to know.
class VolumeFacts {
 public:
  virtual ~VolumeFacts() = default;
  /// `not_found` if there is no such volume.
  virtual Result<void> check_exists(const std::string& volume) const = 0;
  /// The volume of this host on whose checkpoint this one stands, "" for none.
  virtual Result<std::string> backing_volume(const std::string& volume) const = 0;
};

struct KeeperStatus {
  std::string state;  // as in the API: closed, opening, open, served, failed
  std::string error;  // with `failed`
  int pid = 0;        // 0 if there is none
};

class Keepers {
 public:
  struct Keeper;

  /// Keeps a volume's keeper from being ended for as long as it lives. May outlive the keeper's
  /// process: calls then end with `disconnected`. Not longer than Keepers.
  class Use final : public KeeperChannel {
   public:
    Use() = default;
    explicit Use(std::shared_ptr<Keeper> keeper);
    Use(Use&& other) noexcept : keeper_(std::move(other.keeper_)) {}
    Use& operator=(Use&& other) noexcept;
    ~Use() override;
    /// On the connection of this moment: a keeper that was started again answers too.
    Async<Result<nlohmann::json>> call(std::string method, nlohmann::json params,
                                       CallOptions options) override;
    int pid() const;
    bool is_of(const Keeper& keeper) const { return keeper_.get() == &keeper; }

   private:
    std::shared_ptr<Keeper> keeper_;
  };

  /// Called with every keeper that was started or found, before anybody else uses it.
  using OpenedHook = std::function<Async<Result<void>>(KeeperChannel& channel, std::string volume)>;

  Keepers(Executor executor, KeeperPolicy policy, const VolumeFacts& facts, EventLog& events);
  ~Keepers();

  void set_opened_hook(OpenedHook hook) { opened_hook_ = std::move(hook); }

  /// Finds the keepers that run, and starts those that served and are gone. Begins to look for idle
  /// ones.
  Async<void> take_over();

  /// The volume's keeper, started if need be.
  Async<Result<Use>> use(std::string volume);

  /// Ends the volume's keeper if it has one, and keeps others from starting one until the lock
  /// goes. `in_use` while it is served or somebody uses it.
  Async<Result<AsyncMutex::Lock>> close(std::string volume);

  /// Listeners as the API shows them. `connections` is as of now; none if the volume is closed.
  Async<Result<nlohmann::json>> listeners(std::string volume);
  /// `request` as of serve.start; the listener.
  Async<Result<nlohmann::json>> serve(std::string volume, nlohmann::json request);
  /// On this address (`{"unix": …}` or `{"tcp": …}`), or everywhere (`{}`); those that were closed.
  Async<Result<nlohmann::json>> unserve(std::string volume, nlohmann::json address);

  KeeperStatus status(const std::string& volume) const;
  std::size_t open_count() const;

  /// Closes every volume and ends its keeper, served or not; how many ended, and how many would not
  /// in time.
  struct Stopped {
    std::size_t ended = 0;
    std::vector<std::string> failed;
  };
  Async<Stopped> stop_all();

  /// Starts and restarts nothing any more.
  void quit();

 private:
  std::shared_ptr<Keeper> keeper_of(const std::string& volume);
  std::string volume_above(const Keeper& keeper) const;
  Async<Result<void>> open(std::shared_ptr<Keeper> keeper);
  Async<Result<void>> launch(std::shared_ptr<Keeper> keeper);
  Async<Result<void>> attach(std::shared_ptr<Keeper> keeper);
  Async<Result<nlohmann::json>> await_open(std::shared_ptr<Keeper> keeper);
  Async<Result<void>> refresh_listeners(std::shared_ptr<Keeper> keeper);
  Async<Result<void>> stop(std::shared_ptr<Keeper> keeper);
  Async<void> watch_process(std::shared_ptr<Keeper> keeper, std::uint64_t generation);
  Async<void> keep_serving(std::shared_ptr<Keeper> keeper);
  Async<bool> take_over_one(std::string volume);
  Async<void> end_idle_keepers();

  Executor executor_;
  KeeperPolicy policy_;
  const VolumeFacts& facts_;
  EventLog& events_;
  OpenedHook opened_hook_;
  std::map<std::string, std::shared_ptr<Keeper>> keepers_;  // by volume
  Wakeup quitting_changed_;
  bool quitting_ = false;
};

}  // namespace berth::control
