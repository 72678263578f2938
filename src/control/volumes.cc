#include "control/volumes.h"

#include <utility>

#include "control/spawn.h"
#include "machine/backing_specification.h"

namespace berth::control {

using machine::VolumeSummary;

std::string backing_volume_of(const std::string& backing) {
  if (backing.empty()) return {};
  const auto parsed = machine::parse_backing(backing);
  if (!parsed || parsed->kind != machine::BackingSpecification::Kind::volume_checkpoint) return {};
  return parsed->volume;
}

Volumes::Volumes(boost::asio::thread_pool& workers, std::string state_dir, std::string run_dir)
    : workers_(workers), store_(std::move(state_dir), std::move(run_dir)) {}

Result<void> Volumes::check_exists(const std::string& volume) const {
  TRY(store_.summary(volume));
  return {};
}

Result<std::string> Volumes::backing_volume(const std::string& volume) const {
  return backing_volume_of(TRY(store_.summary(volume)).backing);
}

Async<Result<std::vector<VolumeSummary>>> Volumes::list() {
  const machine::VolumeStore* store = &store_;
  co_return co_await on_worker(workers_, [store] { return store->list(); });
}

Async<Result<VolumeSummary>> Volumes::create(machine::VolumeCreateRequest request,
                                             machine::VolumeCreateJob job) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(workers_,
                               [store, request = std::move(request), job = std::move(job)] {
                                 return store->create(request, job);
                               });
}

Async<Result<void>> Volumes::remove(std::string volume) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(
      workers_, [store, volume = std::move(volume)] { return store->remove(volume); });
}

}  // namespace berth::control
