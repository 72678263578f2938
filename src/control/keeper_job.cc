#include "control/keeper_job.h"

#include <boost/asio/post.hpp>
#include <nlohmann/json.hpp>

#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

Async<Result<Json>> run_keeper_call(std::shared_ptr<Keepers::Use> keeper, std::string method,
                                    Json params, ResultMaker make_result,
                                    std::shared_ptr<JobProgress> job) {
  const Json answer =
      CO_TRY(co_await keeper->call(method, std::move(params), call_for(std::move(job))));
  co_return make_result(answer);
}

}  // namespace

CallOptions call_for(std::shared_ptr<JobProgress> job, std::string phase) {
  CallOptions options{.timeout = Milliseconds(0), .stop = job->stop(), .progress = {}};
  options.progress = [job = std::move(job),
                      phase = std::move(phase)](const machine::ControlProgress& progress) {
    job->report(phase.empty() ? progress.phase : phase, progress.done, progress.total);
  };
  return options;
}

machine::VolumeJob work_for(const Services& services, std::shared_ptr<JobProgress> job) {
  machine::VolumeJob work{.report = {}, .stop = job->stop()};
  work.report = [executor = services.executor,
                 job = std::move(job)](const machine::ControlProgress& progress) {
    boost::asio::post(
        executor, [job, progress] { job->report(progress.phase, progress.done, progress.total); });
  };
  return work;
}

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
