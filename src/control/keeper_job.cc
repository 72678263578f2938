#include "control/keeper_job.h"

#include <nlohmann/json.hpp>

#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

Async<Result<Json>> run_keeper_call(std::shared_ptr<Keepers::Use> keeper, std::string method,
                                    Json params, ResultMaker make_result,
                                    std::shared_ptr<JobProgress> job) {
  const auto report = [job](const machine::ControlProgress& progress) {
    job->report(progress.phase, progress.done, progress.total);
  };
  const Json answer = CO_TRY(
      co_await keeper->call(method, std::move(params),
                            {.timeout = Milliseconds(0), .stop = job->stop(), .progress = report}));
  co_return make_result(answer);
}

}  // namespace

Async<Result<Json>> start_keeper_job(Services& services, JobDescription description,
                                     std::string method, Json params, ResultMaker make_result) {
  const auto keeper =
      std::make_shared<Keepers::Use>(CO_TRY(co_await services.keepers.use(description.volume)));
  co_return co_await services.jobs.start(
      std::move(description),
      [keeper, method, params, make_result](std::shared_ptr<JobProgress> job) {
        return run_keeper_call(keeper, method, params, make_result, std::move(job));
      });
}

}  // namespace berth::control
