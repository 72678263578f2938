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
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "container/container_layout.h"
#include "container/container_store.h"
#include "control/async.h"
#include "control/events.h"
#include "control/keeper_connection.h"
#include "control/keepers.h"
#include "control/machines.h"
#include "machine/vm/admission.h"

namespace berth::control {

struct ContainerPolicy {
  std::string program;  // what is executed as `PROGRAM keeper …`
  std::string state_dir;
  std::string run_dir;
  std::string memory_dir;
  std::string preload;  // "" where memory is not tracked
};

class Containers final : public MachineNeighbours {
 public:
  struct Container;

  Containers(Executor executor, boost::asio::thread_pool& workers, ContainerPolicy policy,
             Keepers& keepers, Machines& machines, EventLog& events);
  ~Containers() override;

  /// Finds what runs, and gives keepers to QEMUs that have lost theirs. After
  /// Keepers::take_over().
  Async<void> take_over();

  Async<std::vector<container::ContainerRecord>> list();
  /// By name, id, or the beginning of an id.
  Async<Result<container::ContainerRecord>> find(std::string reference);
  Async<Result<container::ContainerRecord>> create(container::ContainerSpecification wanted);
  /// Of one that does not run.
  Async<Result<void>> remove(std::string name);

  struct Start {
    std::string image;  // paths
    std::string kernel;
    std::string initrd;
    bool hold = false;
  };
  Async<Result<void>> start(std::string name, Start how);
  /// A time-out of 0: at once, by force.
  Async<Result<void>> stop(std::string name, Milliseconds timeout);
  /// One method of its keeper's. `precondition` where it does not run.
  Async<Result<nlohmann::json>> call(std::string name, std::string method, nlohmann::json params,
                                     CallOptions options);
  bool is_on(const std::string& name) const;
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
  void quit();

 private:
  std::shared_ptr<Container> container_of(const std::string& name);
  Result<std::shared_ptr<KeeperConnection>> connection(const std::string& name) const;
  Async<Result<void>> launch(std::shared_ptr<Container> container);
  Async<Result<void>> attach(std::shared_ptr<Container> container);
  Async<void> watch_process(std::shared_ptr<Container> container, std::uint64_t generation);
  Async<void> keep(std::shared_ptr<Container> container);
  Async<bool> release_ended(std::string name);
  Async<void> await_ending(std::shared_ptr<Container> container);
  Async<void> note_lost_run(std::string name);
  Async<void> await_end(std::shared_ptr<Container> container, Milliseconds patience);
  Async<Result<std::vector<nlohmann::json>>> serve_disks(container::ContainerRecord record);
  Async<void> unserve_disks(container::ContainerRecord record);
  bool is_used(const std::string& name) const;
  bool has_qemu(const std::string& name) const;
  std::string disk_socket(const std::string& name, const std::string& node) const;

  Executor executor_;
  boost::asio::thread_pool& workers_;
  ContainerPolicy policy_;
  container::ContainerRunLayout run_;
  Keepers& keepers_;
  Machines& machines_;
  EventLog& events_;
  container::ContainerStore store_;
  std::map<std::string, std::shared_ptr<Container>> containers_;
  bool quitting_ = false;
};

}  // namespace berth::control
