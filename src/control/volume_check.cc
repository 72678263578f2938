#include "control/volume_check.h"

#include <memory>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/shared_memory.h"
#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "control/spawn.h"
#include "disk/check.h"
#include "machine/layout.h"
#include "machine/live_store.h"
#include "machine/volume_directory.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

Json shown_finding(const disk::CheckFinding& finding) {
  return {{"severity", disk::to_string(finding.severity)},
          {"where", finding.where},
          {"what", finding.what},
          {"repairable", finding.repairable},
          {"repaired", finding.repaired}};
}

Json shown_report(const disk::CheckReport& report, const std::string& shown_as) {
  Json findings = Json::array();
  for (const disk::CheckFinding& finding : report.findings)
    findings.push_back(shown_finding(finding));
  return {{"volume", shown_as},
          {"sound", report.sound()},
          {"findings", std::move(findings)},
          {"findings_left_out", report.findings_left_out},
          {"notes", report.notes},
          {"warnings", report.warnings},
          {"errors", report.errors},
          {"errors_repaired", report.errors_repaired},
          {"journal_records", report.journal_records},
          {"pages", report.pages},
          {"hold_layers", report.hold_layers},
          {"hold_entries", report.hold_entries},
          {"hold_bytes", report.hold_bytes}};
}

/// Where a keeper may have left a live map. The place, made where there was none, goes again.
class LiveStore {
 public:
  static Result<LiveStore> open(const VolumeCheckRequest& request) {
    LiveStore live(request);
    if (!request.volume.empty())
      live.store_ = TRY(machine::open_live_store({request.run_dir}, request.volume));
    return live;
  }
  LiveStore(LiveStore&&) = default;
  LiveStore& operator=(LiveStore&&) = delete;
  ~LiveStore() {
    if (store_) machine::release_live_store({request_.run_dir}, request_.volume);
  }
  SharedMemoryStore* get() const { return store_.get(); }

 private:
  explicit LiveStore(const VolumeCheckRequest& request) : request_(request) {}
  const VolumeCheckRequest& request_;
  std::unique_ptr<FileSharedMemoryStore> store_;
};

}  // namespace

Result<Json> check_volume(const VolumeCheckRequest& request) {
  if (!machine::path_exists(request.directory)) {
    return failure(ErrorKind::not_found, fmt::format("there is no volume '{}'", request.shown_as));
  }
  const auto loop = TRY(UringLoop::create());
  const auto directory = TRY(open_directory(*loop, request.directory, false));
  const LiveStore live_store = TRY(LiveStore::open(request));
  const disk::CheckOptions options{.repair = request.repair, .live_store = live_store.get()};
  auto report = loop->run_until_complete(disk::check_volume(*loop, *directory, options));
  if (report) return shown_report(*report, request.shown_as);
  return failure(
      std::move(report).error().with_context(fmt::format("cannot check '{}'", request.shown_as)));
}

Async<Result<Json>> check_volume_on(boost::asio::thread_pool& workers, VolumeCheckRequest request) {
  co_return co_await on_worker(workers,
                               [request = std::move(request)] { return check_volume(request); });
}

}  // namespace berth::control
