// What carries the actions out: a handler for each, by name. The other half of actions.h.
//
// On the control plane's thread. Parameters come checked (router.h); what a handler answers has the
// shape that the action's schema says. A handler of a job checks what it can, starts the job and
// answers with it.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/fd.h"
#include "base/result.h"
#include "container/image_store.h"
#include "container/kernel_store.h"
#include "control/async.h"
#include "control/clone_pool.h"
#include "control/containers.h"
#include "control/events.h"
#include "control/group_cut.h"
#include "control/jobs.h"
#include "control/keepers.h"
#include "control/machines.h"
#include "control/templates.h"
#include "control/volumes.h"

namespace berth::control {

/// Everything that a handler may use. The daemon's, and lives as long as it.
struct Services {
  Executor executor;
  boost::asio::thread_pool& workers;
  std::string state_dir;
  std::string run_dir;
  std::string started_at;
  Volumes& volumes;
  Keepers& keepers;
  Machines& machines;
  GroupCuts& cuts;
  container::ImageStore& images;           // on the workers
  boost::asio::thread_pool& image_makers;  // where images are made: that may take long
  container::KernelStore& kernels;         // on the workers
  Containers& containers;
  Templates& templates;
  ClonePool& pool;
  Jobs& jobs;
  EventLog& events;
  std::function<void()> request_end;  // of the daemon, once open requests are answered
};

using Handler = Async<Result<nlohmann::json>> (*)(Services& services, nlohmann::json params);
using Stream = std::unique_ptr<LineSource>;
using StreamHandler = Async<Result<Stream>> (*)(Services& services, nlohmann::json params);
/// A connection that the client's is joined with.
using UpgradeHandler = Async<Result<Fd>> (*)(Services& services, nlohmann::json params);

using HandlerTable = std::vector<std::pair<std::string_view, Handler>>;

/// A Machine of the API.
Async<Result<nlohmann::json>> shown_machine(Services& services, std::string name);

/// A Container of the API.
Async<nlohmann::json> shown_container(Services& services, container::ContainerRecord record);
/// Runs it: booted, or, of a clone, mapped. `hold`: its command waits for somebody to attach.
Async<Result<void>> start_container(Services& services, container::ContainerRecord record,
                                    bool hold);

/// One that is hibernated goes on; of another one there is nothing to do.
Async<Result<void>> awaken_container(Services& services, container::ContainerRecord record);
/// The same for somebody who has connected to a port of it, and is hung up on if it fails.
Async<void> awaken_for_port(Services& services, std::string name);

/// What a container has written, and, if that is wanted, what it will until it ends.
Async<Result<Stream>> container_logs(Services& services, nlohmann::json params);

/// To its keeper's attach socket. One that is hibernated goes on.
Async<Result<Fd>> container_attach(Services& services, nlohmann::json params);

HandlerTable host_handlers();
HandlerTable volume_handlers();
HandlerTable checkpoint_handlers();
HandlerTable refpoint_handlers();
HandlerTable machine_handlers();
HandlerTable machine_point_handlers();
HandlerTable image_handlers();
HandlerTable container_handlers();
HandlerTable template_handlers();
HandlerTable kernel_handlers();
HandlerTable job_handlers();

/// Null if no action of that name answers at once, or with a job.
Handler find_handler(std::string_view action);
/// Null if no action of that name is a stream.
StreamHandler find_stream_handler(std::string_view action);
/// Null if no action of that name takes the connection over.
UpgradeHandler find_upgrade_handler(std::string_view action);

}  // namespace berth::control
