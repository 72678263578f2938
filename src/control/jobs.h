// Jobs: work that goes on after its request was answered. Each has a phase, a progress, and can be
// asked to end.
//
// On the control plane's thread. What ended is remembered in the catalogue; a job that ran when the
// daemon ended is `failed` in the next one, for nothing of it goes on.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"
#include "control/catalogue.h"
#include "control/events.h"

namespace berth::control {

constexpr std::size_t jobs_running_max = 64;

/// What the work of a job holds of it.
class JobProgress {
 public:
  virtual ~JobProgress() = default;
  virtual void report(std::string phase, std::uint64_t bytes_done, std::uint64_t bytes_total) = 0;
  virtual std::stop_token stop() const = 0;
};

/// Ends with the job's result, or with why there is none (`cancelled` after a stop).
using JobWork = std::function<Async<Result<nlohmann::json>>(std::shared_ptr<JobProgress>)>;

struct JobDescription {
  std::string kind;    // the action's name
  std::string target;  // for people: "disk1@before"
  std::string volume;
};

class Jobs {
 public:
  Jobs(Executor executor, boost::asio::thread_pool& workers, Catalogue& catalogue,
       EventLog& events);
  ~Jobs();

  /// Reads what is remembered. Call it once, first.
  Async<Result<void>> load();

  /// Starts the work; the job as it is then. `limit` if too many run.
  Async<Result<nlohmann::json>> start(JobDescription description, JobWork work);

  Result<nlohmann::json> info(const std::string& id) const;
  /// The youngest first; `state` "all" or one state.
  nlohmann::json list(const std::string& state, std::size_t count_max) const;
  Result<nlohmann::json> cancel(const std::string& id);
  /// A line whenever it has moved, at most ten a second, the last one when it has ended.
  Result<std::unique_ptr<LineSource>> watch(const std::string& id);
  std::size_t running() const;

  /// Asks every job to end and waits for them, but not longer than this.
  Async<void> end_all(Milliseconds patience);

  struct Job;

 private:
  Async<void> run(std::shared_ptr<Job> job, JobWork work);
  Async<void> save(std::shared_ptr<Job> job);
  std::shared_ptr<Job> find(const std::string& id) const;
  std::string new_id() const;
  void forget_oldest();

  Executor executor_;
  boost::asio::thread_pool& workers_;
  Catalogue& catalogue_;
  EventLog& events_;
  std::vector<std::shared_ptr<Job>> jobs_;  // the oldest first
};

}  // namespace berth::control
