// Making a machine and its disks, all of it or nothing; and taking it away.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"
#include "machine/vm/machine_store.h"

namespace berth::control {

/// What would keep it from being made, said before anything is: a name that is taken, an image or a
/// kernel that is not there, a volume that is somebody else's.
Async<Result<void>> check_creation(Services& services, machine::MachineSpecification specification);

/// A Machine of the API.
Async<Result<nlohmann::json>> create_machine(Services& services,
                                             machine::MachineSpecification specification,
                                             std::shared_ptr<JobProgress> job);

/// Closes the disks of its own; nobody opens them until the locks go. `precondition` while it runs.
/// With the machine's lock held.
Async<Result<std::vector<AsyncMutex::Lock>>> close_disks(Services& services,
                                                         machine::MachineRecord record);

Async<Result<void>> delete_machine(Services& services, std::string name);

}  // namespace berth::control
