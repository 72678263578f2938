// Jobs that are one long call of a keeper.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"

namespace berth::control {

/// What the keeper answered becomes the job's result, through this.
using ResultMaker = std::function<Result<nlohmann::json>(const nlohmann::json& answer)>;

/// Opens the volume (errors of that are answered at once), then starts a job that calls the method
/// with progress, and cancels it when the job is cancelled.
Async<Result<nlohmann::json>> start_keeper_job(Services& services, JobDescription description,
                                               std::string method, nlohmann::json params,
                                               ResultMaker make_result);

}  // namespace berth::control
