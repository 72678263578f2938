// The containers of this host as the daemon knows them: their records, and the keepers of those
// that run. Started on demand, found again when the daemon starts, given a new keeper when one
// dies.
//
// On the control plane's thread. A container's disks are volumes, served to its QEMU on sockets of
// its own: this object serves them before it starts, and ends that when it has ended. When it goes,
// keepers and QEMUs stay.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "container/container_layout.h"
#include "container/container_store.h"
#include "container/hibernation_record.h"
#include "control/async.h"
#include "control/events.h"
#include "control/guest_keepers.h"
#include "control/hibernated_ports.h"
#include "control/keeper_connection.h"
#include "control/keepers.h"
#include "control/machines.h"
#include "machine/vm/admission.h"

namespace berth::control {

class Containers final : public MachineNeighbours {
 public:
  Containers(Executor executor, boost::asio::thread_pool& workers, const GuestPolicy& policy,
             Keepers& keepers, Machines& machines, EventLog& events);
  ~Containers() override;

  /// Finds what runs, and gives keepers to QEMUs that have lost theirs. After
  /// Keepers::take_over().
  Async<void> take_over();

  Async<std::vector<container::ContainerRecord>> list();
  /// By name, id, or the beginning of an id.
  Async<Result<container::ContainerRecord>> find(std::string reference);
  using Identity = container::ContainerIdentity;
  /// Of a clone that waits, with its identity.
  Async<Result<container::ContainerRecord>> create(container::ContainerSpecification wanted,
                                                   std::optional<Identity> identity = std::nullopt);
  /// Of one that does not run.
  Async<Result<void>> remove(std::string name);

  struct Start {
    std::string image;  // paths
    std::string kernel;
    std::string unpacked_kernel = {};  // "" for none
    std::string initrd;
    std::string agent;  // in the host's kernel, in place of those above
    bool hold = false;
    std::string memory;  // of the template that it is a clone of; "": it boots
    std::string devices;
    bool wake = false;  // it is hibernated, and goes on; `memory` as it was then
  };
  Async<Result<void>> start(std::string name, Start how);

  /// A clone that waits for a name.
  struct Waiting {
    std::string place;  // what its keeper is called until then
    Identity identity;
  };
  /// As start(), of a clone that nobody has asked for yet.
  Async<Result<Waiting>> prepare(container::ContainerSpecification alike, Start how);
  /// It is the container of this record, and runs. What fails has ended it.
  Async<Result<void>> assume(container::ContainerRecord record, Waiting waiting);
  Async<void> discard(Waiting waiting);
  /// Those of a daemon that is dead.
  Async<void> discard_left_waiting();

  /// A time-out of 0: at once, by force.
  Async<Result<void>> stop(std::string name, Milliseconds timeout);
  /// One method of its keeper's. `precondition` where it does not run.
  Async<Result<nlohmann::json>> call(std::string name, std::string method, nlohmann::json params,
                                     CallOptions options);
  bool is_on(const std::string& name) const { return guests_.is_on(name); }

  /// From a lighter level, or none. One that has been idle for less than `idle_min` is
  /// `precondition`. Of one that is hibernated keeper and QEMU have ended.
  Async<Result<void>> pause(std::string name, machine::PauseLevel level,
                            Milliseconds idle_min = Milliseconds(0));
  bool is_hibernated(const std::string& name) const { return hibernated_.contains(name); }
  Async<Result<container::HibernationRecord>> hibernation(std::string name);
  /// What it would go on from goes: it has ended, as if it had been killed.
  Async<Result<void>> discard_hibernated(std::string name);
  /// Somebody has connected to a port of one that is hibernated: who is told wakes it, or refuses.
  void on_wanted(HibernatedPorts::Wanted wanted) { ports_.on_wanted(std::move(wanted)); }
  void refuse_wanted(const std::string& name) { ports_.refuse(name); }

  /// Waits for one that is about to end, until its volumes are free, or it has gone.
  Async<void> settle(std::string name);

  struct Status {
    std::string state;  // as in the API
    container::ContainerState last;
    nlohmann::json info;  // as its keeper says; null where it does not run
  };
  Async<Status> status(std::string name);

  /// The container that has the image; "" for none.
  Async<std::string> user_of_image(std::string digest);
  /// The container that has the volume, running or not; "" for none.
  Async<std::string> user_of_volume(std::string volume);
  Async<std::vector<machine::MachineMemory>> running_memory() override;
  Async<std::string> runs_with(std::string volume) override;
  /// All that run, each with its own time; or all at once by force. How many.
  Async<std::size_t> stop_all(bool force);
  void quit() {
    guests_.quit();
    ports_.quit();
  }

 private:
  Async<bool> release_ended(std::string name);
  Async<void> await_ending(GuestKeepers::Guest container);
  Async<void> note_lost_run(std::string name);
  Async<Result<std::vector<nlohmann::json>>> serve_disks(container::ContainerRecord record);
  Async<void> unserve_disks(container::ContainerRecord record);
  bool is_used(const std::string& name) const;
  bool has_disks(const std::string& name) const { return is_used(name) || is_hibernated(name); }
  // container_hibernation.cc
  Async<Result<void>> hibernate(std::string name, nlohmann::json params);
  Async<bool> has_hibernation(std::string name);
  Async<std::vector<Fd>> take_ports(std::string name);
  Async<void> find_hibernated(std::string name);
  Async<void> look_whether_hibernated(std::string name);
  Async<Status> hibernated_status(std::string name);
  void woke_up(const std::string& name);

  Async<Result<Identity>> reserve_identity();
  Async<Result<Waiting>> prepare_as(Identity identity, container::ContainerSpecification alike,
                                    Start how);
  std::set<std::uint32_t> uids_of_waiting() const;
  void forget_waiting(const std::string& place);

  boost::asio::thread_pool& workers_;
  container::ContainerRunLayout run_;
  Machines& machines_;
  EventLog& events_;
  container::ContainerStore store_;
  GuestKeepers guests_;
  HibernatedPorts ports_;
  std::set<std::string> hibernated_;
  std::set<std::string> starting_;  // count in admission, and have their volumes
  std::map<std::string, container::ContainerRecord> waiting_;  // by their place
  AsyncMutex choosing_;                     // of a uid, until others see that it is taken
  std::set<std::uint32_t> uids_preparing_;  // of what is about to wait
};

}  // namespace berth::control
