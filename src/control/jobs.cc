#include "control/jobs.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <ranges>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/log.h"
#include "base/units.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

constexpr std::size_t jobs_remembered_max = 1000;
constexpr auto rate_window = std::chrono::seconds(10);
constexpr auto rate_sample_every = std::chrono::milliseconds(200);
constexpr Milliseconds watch_line_every{100};

std::string now_text() { return format_time(std::chrono::system_clock::now()); }

Json error_document(const Error& error) {
  return {{"kind", to_string(error.kind())}, {"message", error.message()}};
}

/// Bytes a second over the last seconds.
class RateMeter {
 public:
  void add(std::uint64_t bytes) {
    const auto now = SteadyClock::now();
    if (!samples_.empty() && bytes < samples_.back().bytes) samples_.clear();  // another phase
    if (samples_.size() >= 2 && now - samples_[samples_.size() - 2].at < rate_sample_every)
      samples_.pop_back();
    samples_.push_back({now, bytes});
    while (samples_.size() > 2 && now - samples_.front().at > rate_window) samples_.pop_front();
  }

  /// Nothing while it is not known.
  std::optional<std::uint64_t> bytes_per_second() const {
    if (samples_.size() < 2) return std::nullopt;
    const auto elapsed =
        std::chrono::duration<double>(samples_.back().at - samples_.front().at).count();
    if (elapsed <= 0) return std::nullopt;
    return static_cast<std::uint64_t>(
        static_cast<double>(samples_.back().bytes - samples_.front().bytes) / elapsed);
  }

 private:
  struct Sample {
    SteadyClock::time_point at;
    std::uint64_t bytes;
  };
  std::deque<Sample> samples_;
};

}  // namespace

struct Jobs::Job final : JobProgress {
  Job(const Executor& executor, std::string id, Json document)
      : id(std::move(id)), document(std::move(document)), changed(executor) {}

  void report(std::string phase, std::uint64_t bytes_done, std::uint64_t bytes_total) override {
    if (!is_running()) return;  // a worker's last word may come late
    rate.add(bytes_done);
    document["phase"] = std::move(phase);
    document["bytes_done"] = bytes_done;
    document["bytes_total"] = bytes_total == 0 ? Json() : Json(bytes_total);
    const auto speed = rate.bytes_per_second();
    document["bytes_per_second"] = speed ? Json(*speed) : Json();
    const bool predictable = speed && *speed != 0 && bytes_total >= bytes_done && bytes_total != 0;
    document["eta_seconds"] = predictable ? Json((bytes_total - bytes_done) / *speed) : Json();
    touch();
  }

  std::stop_token stop() const override { return stop_source.get_token(); }

  void touch() {
    ++version;
    changed.notify();
  }

  std::string state() const { return document["state"].get<std::string>(); }
  bool is_running() const { return state() == "running"; }

  void end(const Result<Json>& result) {
    if (result) {
      document["state"] = "done";
      document["result"] = *result;
    } else {
      document["state"] = result.error().kind() == ErrorKind::cancelled ? "cancelled" : "failed";
      document["error"] = error_document(result.error());
    }
    document["phase"] = "ended";
    document["eta_seconds"] = nullptr;
    document["ended_at"] = now_text();
    touch();
  }

  std::string id;
  Json document;  // as the API shows it
  std::stop_source stop_source;
  RateMeter rate;
  std::uint64_t version = 1;
  bool unsaved = false;  // from its start until its end is in the catalogue
  Wakeup changed;
};

namespace {

class JobWatch final : public LineSource {
 public:
  explicit JobWatch(std::shared_ptr<Jobs::Job> job) : job_(std::move(job)) {}

  Async<std::optional<std::string>> next() override {
    const auto job = job_;
    if (told_end_ || closed_) co_return std::nullopt;
    const auto not_before = SteadyClock::now() + watch_line_every;
    while (seen_ != 0 && !closed_ && job->is_running() && SteadyClock::now() < not_before) {
      co_await job->changed.wait_for(
          std::chrono::duration_cast<Milliseconds>(not_before - SteadyClock::now()) +
          Milliseconds(1));
    }
    while (!closed_ && seen_ == job->version) co_await job->changed.wait();
    if (closed_) co_return std::nullopt;
    seen_ = job->version;
    told_end_ = !job->is_running();
    co_return machine::format_json(job->document);
  }

  void close() override {
    closed_ = true;
    job_->changed.notify();
  }

 private:
  std::shared_ptr<Jobs::Job> job_;
  std::uint64_t seen_ = 0;
  bool told_end_ = false;
  bool closed_ = false;
};

}  // namespace

Jobs::Jobs(Executor executor, boost::asio::thread_pool& workers, Catalogue& catalogue,
           EventLog& events)
    : executor_(std::move(executor)), workers_(workers), catalogue_(catalogue), events_(events) {}

Jobs::~Jobs() = default;

Async<Result<void>> Jobs::load() {
  Catalogue* catalogue = &catalogue_;
  const auto records = CO_TRY(
      co_await on_worker(workers_, [catalogue] { return catalogue->jobs(jobs_remembered_max); }));
  for (const JobRecord& record : records | std::views::reverse) {
    auto document = machine::parse_json(record.document);
    if (!document || !document->is_object()) continue;
    auto job = std::make_shared<Job>(executor_, record.id, std::move(*document));
    jobs_.push_back(job);
    if (record.state == "running") {
      job->end(
          failure(ErrorKind::disconnected, "the daemon ended while the job ran; start it again"));
      co_await save(job);
    }
  }
  co_return Result<void>();
}

Async<Result<Json>> Jobs::start(JobDescription description, JobWork work) {
  if (running() >= jobs_running_max) {
    co_return failure(ErrorKind::limit,
                      fmt::format("{} jobs are running, and no more may: wait for one to end, "
                                  "or cancel it",
                                  jobs_running_max));
  }
  const std::string id = new_id();
  auto job = std::make_shared<Job>(executor_, id,
                                   Json{{"id", id},
                                        {"kind", description.kind},
                                        {"target", description.target},
                                        {"state", "running"},
                                        {"phase", "starting"},
                                        {"bytes_done", 0},
                                        {"bytes_total", nullptr},
                                        {"bytes_per_second", nullptr},
                                        {"eta_seconds", nullptr},
                                        {"created_at", now_text()},
                                        {"ended_at", nullptr},
                                        {"error", nullptr},
                                        {"result", nullptr}});
  job->unsaved = true;
  jobs_.push_back(job);
  forget_oldest();
  co_await save(job);
  events_.publish("job_started", {.volume = description.volume, .job = id},
                  fmt::format("{} of {}", description.kind, description.target));
  control::start(executor_, run(job, std::move(work)));
  co_return job->document;
}

Async<void> Jobs::run(std::shared_ptr<Job> job, JobWork work) {
  Result<Json> result = failure(ErrorKind::internal, "the work of the job did not end");
  try {
    result = co_await work(job);
  } catch (const std::exception& exception) {
    result =
        failure(ErrorKind::internal, fmt::format("an unexpected exception: {}", exception.what()));
  }
  job->end(result);
  co_await save(job);
  job->unsaved = false;
  job->changed.notify();
  events_.publish("job_ended", {.volume = {}, .job = job->id},
                  fmt::format("{} of {}: {}", job->document["kind"].get<std::string>(),
                              job->document["target"].get<std::string>(),
                              result ? "done" : result.error().message()));
}

Async<void> Jobs::save(std::shared_ptr<Job> job) {
  Catalogue* catalogue = &catalogue_;
  JobRecord record{
      .id = job->id, .state = job->state(), .document = machine::format_json(job->document)};
  const auto saved = co_await on_worker(
      workers_, [catalogue, record = std::move(record)] { return catalogue->save_job(record); });
  if (!saved) log_warning("job {}: {}", job->id, saved.error().message());
}

std::shared_ptr<Jobs::Job> Jobs::find(const std::string& id) const {
  const auto found = std::ranges::find(jobs_, id, &Job::id);
  return found == jobs_.end() ? nullptr : *found;
}

Result<Json> Jobs::info(const std::string& id) const {
  const auto job = find(id);
  if (!job) return failure(ErrorKind::not_found, fmt::format("there is no job '{}'", id));
  return job->document;
}

Json Jobs::list(const std::string& state, std::size_t count_max) const {
  Json found = Json::array();
  for (const auto& job : jobs_ | std::views::reverse) {
    if (found.size() == count_max) break;
    if (state == "all" || job->state() == state) found.push_back(job->document);
  }
  return {{"jobs", std::move(found)}};
}

Result<Json> Jobs::cancel(const std::string& id) {
  const auto job = find(id);
  if (!job) return failure(ErrorKind::not_found, fmt::format("there is no job '{}'", id));
  if (!job->is_running()) {
    return failure(ErrorKind::precondition,
                   fmt::format("the job '{}' has ended: it is {}", id, job->state()));
  }
  if (!job->stop_source.stop_requested()) {
    job->document["phase"] = "cancelling";
    job->stop_source.request_stop();
    job->touch();
  }
  return job->document;
}

Result<std::unique_ptr<LineSource>> Jobs::watch(const std::string& id) {
  auto job = find(id);
  if (!job) return failure(ErrorKind::not_found, fmt::format("there is no job '{}'", id));
  return std::make_unique<JobWatch>(std::move(job));
}

std::size_t Jobs::running() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(jobs_, [](const auto& job) { return job->is_running(); }));
}

Async<void> Jobs::end_all(Milliseconds patience) {
  const auto jobs = jobs_;
  for (const auto& job : jobs) {
    if (job->is_running()) job->stop_source.request_stop();
  }
  const auto deadline = SteadyClock::now() + patience;
  for (const auto& job : jobs) {
    // Else the next daemon would say that it was cut short.
    while (job->unsaved && SteadyClock::now() < deadline) {
      co_await job->changed.wait_for(
          std::chrono::duration_cast<Milliseconds>(deadline - SteadyClock::now()) +
          Milliseconds(1));
    }
  }
}

std::string Jobs::new_id() const {
  SystemRandom random;
  while (true) {
    std::string id = random.id().to_string().substr(0, 8);
    if (!find(id)) return id;
  }
}

void Jobs::forget_oldest() {
  const auto ended = [](const auto& job) { return !job->is_running(); };
  while (jobs_.size() > jobs_remembered_max) {
    const auto oldest = std::ranges::find_if(jobs_, ended);
    if (oldest == jobs_.end()) return;
    jobs_.erase(oldest);
  }
}

}  // namespace berth::control
