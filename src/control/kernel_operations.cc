// kernel.*: the kernels of microVMs. The actions, and what carries them out.

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "control/action_list.h"
#include "control/keeper_job.h"
#include "control/operations.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using Place = Parameter::Place;
using Type = Parameter::Type;
using container::KernelRecord;

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Json shown(const KernelRecord& kernel) {
  return {
      {"release", kernel.release}, {"source", kernel.source}, {"imported_at", kernel.imported_at}};
}

Async<Result<Json>> run_import(Services& services, container::KernelSource source,
                               std::shared_ptr<JobProgress> job) {
  const container::KernelStore* store = &services.kernels;
  const std::string now = format_time(std::chrono::system_clock::now());
  const auto kernel = CO_TRY(co_await on_worker(
      services.image_makers, [store, source, now, work = work_for(services, std::move(job))] {
        return store->import(source, now, work);
      }));
  services.events.publish("kernel_imported", {}, kernel.release);
  co_return shown(kernel);
}

Async<Result<Json>> kernel_import(Services& services, Json params) {
  const container::KernelSource source{.package = text(params, "package"),
                                       .image = text(params, "image"),
                                       .modules = text(params, "modules")};
  if (source.image.empty() != source.modules.empty() ||
      (!source.image.empty() && !source.package.empty())) {
    co_return failure(ErrorKind::invalid_argument,
                      "give a package, or an image and its modules, or nothing of them");
  }
  const std::string target = !source.package.empty() ? source.package
                             : !source.image.empty() ? source.image
                                                     : "Debian's package";
  co_return co_await services.jobs.start({.kind = "kernel.import", .target = target, .volume = {}},
                                         [&services, source](std::shared_ptr<JobProgress> job) {
                                           return run_import(services, source, std::move(job));
                                         });
}

Async<Result<Json>> kernel_list(Services& services, Json /*params*/) {
  const container::KernelStore* store = &services.kernels;
  Json kernels = Json::array();
  for (const KernelRecord& kernel :
       CO_TRY(co_await on_worker(services.workers, [store] { return store->list(); })))
    kernels.push_back(shown(kernel));
  co_return Json{{"kernels", std::move(kernels)}};
}

}  // namespace

std::vector<Action> kernel_actions() {
  return {
      {.name = "kernel.import",
       .method = Method::post,
       .path = "/v1/kernels/import",
       .summary = "Take in a kernel for microVMs: Debian's package as apt offers it, or another "
                  "one; it is unpacked, not installed",
       .precondition = "It has modules for virtio, EROFS and overlay file systems, or has them "
                       "built in (not_found)",
       .answer = Answer::job,
       .result = "Kernel",
       .parameters = {{"package",
                       Place::body,
                       Type::path,
                       false,
                       "A linux-image package; Debian's cloud kernel is downloaded when left out",
                       {}},
                      {"image", Place::body, Type::path, false, "Or a kernel", {}},
                      {"modules",
                       Place::body,
                       Type::path,
                       false,
                       "And the directory of its modules, called as its release",
                       {}}},
       .errors = {ErrorKind::not_found, ErrorKind::timed_out, ErrorKind::no_space}},
      {.name = "kernel.list",
       .method = Method::get,
       .path = "/v1/kernels",
       .summary = "List the kernels for microVMs; the newest is used",
       .result = "KernelList"},
  };
}

HandlerTable kernel_handlers() {
  return {{"kernel.import", kernel_import}, {"kernel.list", kernel_list}};
}

}  // namespace berth::control
