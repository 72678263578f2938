// Making a machine and its disks, all of it or nothing; and taking it away.
#pragma once

#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"
#include "machine/vm/specification.h"

namespace berth::control {

/// What would keep it from being made, said before anything is: a name that is taken, an image or a
/// kernel that is not there, a volume that is somebody else's.
Async<Result<void>> check_creation(Services& services, machine::MachineSpecification specification);

/// Makes it; what `shown` says of it.
using MachineShown = Async<Result<nlohmann::json>> (*)(Services& services, std::string name);
Async<Result<nlohmann::json>> create_machine_job(Services& services,
                                                 machine::MachineSpecification specification,
                                                 std::shared_ptr<JobProgress> job,
                                                 MachineShown shown);

Async<Result<void>> delete_machine(Services& services, std::string name);

}  // namespace berth::control
