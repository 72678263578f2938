// The machines of this host as the daemon knows them: their directories, and the keepers of those
// that run. Started on demand and at the host's start, found again when the daemon starts, given a
// new keeper when one dies.
//
// On the control plane's thread. A machine's disks are volumes, served to its QEMU on sockets of
// its own: this object serves them before the machine starts, and ends that when it has ended. When
// it goes, keepers and QEMUs stay.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"
#include "control/events.h"
#include "control/guest_keepers.h"
#include "control/keeper_connection.h"
#include "control/keepers.h"
#include "control/volumes.h"
#include "machine/vm/admission.h"
#include "machine/vm/machine_store.h"
#include "machine/vm/pause_record.h"

namespace berth::control {

/// What else runs on this host: it counts in admission, and has volumes.
class MachineNeighbours {
 public:
  virtual ~MachineNeighbours() = default;
  virtual Async<std::vector<machine::MachineMemory>> running_memory() {
    co_return std::vector<machine::MachineMemory>();
  }
  /// Who of them runs with the volume, for a message ("the container 'web'"); "" for nobody.
  virtual Async<std::string> runs_with(std::string /*volume*/) { co_return std::string(); }
  /// Ends what nobody would miss, since a guest needs its memory; whether there was any.
  virtual Async<bool> yield_memory() { co_return false; }
};

class Machines {
 public:
  Machines(Executor executor, boost::asio::thread_pool& workers, const GuestPolicy& policy,
           Keepers& keepers, EventLog& events);
  ~Machines();

  /// Finds what runs, gives keepers to QEMUs that have lost theirs, and, when this is the first
  /// daemon since the host has booted, starts what is to start by itself. After
  /// Keepers::take_over().
  Async<void> take_over();

  Async<Result<std::vector<machine::MachineRecord>>> list();
  Async<Result<machine::MachineRecord>> record(std::string name);  // not_found
  Async<Result<void>> save(machine::MachineRecord record);
  Async<Result<machine::MachineState>> state(std::string name);

  /// As QEMU and the guest say; of one that does not run, as its directory says.
  Async<Result<nlohmann::json>> info(machine::MachineRecord known, bool with_addresses);
  bool is_on(const std::string& name) const { return guests_.is_on(name); }
  /// Nothing runs, and what it goes on from is in its directory: its disks stay as they are.
  bool is_hibernated(const std::string& name) const;
  /// `precondition` for one that is, with how to go on.
  Result<void> check_not_hibernated(const std::string& name) const;
  /// `in_use` for a disk of one that is: what is written to it is not in the memory that was saved.
  Async<Result<void>> check_disk_not_hibernated(std::string volume);

  struct Start {
    bool suspended = false;
    std::string memory;  // what to go on from; "" for a cold start
    std::string devices;
    std::string qemu;  // version and accelerator that these are of
    std::string accelerator;
  };
  /// One that is hibernated goes on; where it cannot, it stays as it is.
  Async<Result<void>> start(std::string name, Start how);
  /// To this level, from a lighter one or none.
  Async<Result<void>> suspend(std::string name, machine::PauseLevel level);
  /// A time-out of 0: at once, by force. One that is hibernated goes on first, to shut down; by
  /// force, what was saved goes.
  Async<Result<void>> stop(std::string name, Milliseconds timeout);
  /// One method of its keeper's. `precondition` where it does not run.
  Async<Result<nlohmann::json>> call(std::string name, std::string method, nlohmann::json params,
                                     CallOptions options);
  /// The keeper's connection of this moment, for what is undone when the caller goes away.
  Result<std::shared_ptr<KeeperConnection>> connection(const std::string& name) const;

  /// Serves a disk for a machine, and where. For a machine that runs, or is about to.
  Async<Result<machine::AttachedDisk>> serve(std::string name, machine::MachineDisk disk,
                                             std::uint32_t uid);
  Async<void> unserve(std::string name, machine::MachineDisk disk);
  /// Closes the disks of a machine that is off, as far as nobody else needs them: so that its
  /// directory is whole and can be copied. With its lock held, or by whoever has just ended it.
  Async<void> rest(std::string name);
  /// Held while a machine is started, ended, changed, checkpointed.
  Async<AsyncMutex::Lock> lock(std::string name);
  /// The machine that has the volume as a disk of its own, or runs with it, or is hibernated with
  /// it; "" for none.
  Async<Result<std::string>> user_of(std::string volume);

  /// Every machine that runs, the last one that was started first, each with its own time to shut
  /// down; or all at once by force.
  Async<std::size_t> stop_all(bool force);
  void quit() { guests_.quit(); }

  void add_neighbours(MachineNeighbours& neighbours) { neighbours_.push_back(&neighbours); }
  /// `limit` where one more does not fit beside everything that runs. One that somebody `needs`
  /// has others yield.
  Async<Result<void>> check_memory(machine::MachineMemory one_more, bool needs = true);

 private:
  Async<Result<void>> look_at_memory(machine::MachineMemory one_more);
  Async<Result<void>> start_locked(GuestKeepers::Guest machine, Start how);
  Async<Result<void>> check_disks_free(machine::MachineRecord record);
  std::string directory(const std::string& name) const;  // of its files
  bool has_disks(const std::string& name) const { return is_on(name) || is_hibernated(name); }
  Async<Result<void>> hibernate(std::string name);
  Async<Result<void>> discard_hibernated(std::string name);
  Async<nlohmann::json> hibernated_info(std::string name);
  Async<void> end_saved(GuestKeepers::Guest machine);
  Async<void> release_disks(std::string name);
  Async<bool> release_ended(std::string name);
  Async<void> autostart();

  boost::asio::thread_pool& workers_;
  Keepers& keepers_;
  EventLog& events_;
  machine::MachineStore store_;
  GuestKeepers guests_;
  std::map<std::string, std::uint64_t> start_numbers_;  // the order in which they were started
  std::uint64_t starts_ = 0;
  std::vector<MachineNeighbours*> neighbours_;
};

}  // namespace berth::control
