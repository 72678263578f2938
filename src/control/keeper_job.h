// Jobs whose work is done elsewhere: in a keeper, or on a worker's thread.
#pragma once

#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "control/operations.h"
#include "machine/volume_store.h"

namespace berth::control {

/// For a call that takes as long as it takes: it ends when the job is cancelled, and its progress
/// is the job's, in the keeper's words or, where it is given, under this phase.
CallOptions call_for(std::shared_ptr<JobProgress> job, std::string phase = {});

/// The same for work on a worker's thread.
machine::VolumeJob work_for(const Services& services, std::shared_ptr<JobProgress> job);

/// What the keeper answered becomes the job's result, through this.
using ResultMaker = std::function<Result<nlohmann::json>(const nlohmann::json& answer)>;

/// Opens the volume (errors of that are answered at once), then starts a job that calls the method
/// with progress, and cancels it when the job is cancelled.
Async<Result<nlohmann::json>> start_keeper_job(Services& services, JobDescription description,
                                               std::string method, nlohmann::json params,
                                               ResultMaker make_result);

}  // namespace berth::control
