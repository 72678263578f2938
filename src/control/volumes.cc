#include "control/volumes.h"

#include <filesystem>
#include <utility>

#include "control/spawn.h"
#include "machine/backing_specification.h"
#include "machine/volume_directory.h"

namespace berth::control {

using machine::VolumeSummary;

std::string backing_volume_of(const std::string& backing) {
  if (backing.empty()) return {};
  const auto parsed = machine::parse_backing(backing);
  if (!parsed || parsed->kind != machine::BackingSpecification::Kind::volume_checkpoint) return {};
  return parsed->volume;
}

Volumes::Volumes(boost::asio::thread_pool& workers, std::string state_dir, std::string run_dir)
    : workers_(workers), state_dir_(state_dir), store_(std::move(state_dir), std::move(run_dir)) {}

Result<void> Volumes::check_exists(const std::string& volume) const {
  TRY(store_.summary(volume));
  return {};
}

Result<std::string> Volumes::backing_volume(const std::string& volume) const {
  const auto backing = machine::parse_backing(TRY(store_.summary(volume)).backing);
  // One that came from another host names what it stood on there.
  const bool stands_on_it =
      backing && backing->kind == machine::BackingSpecification::Kind::volume_checkpoint &&
      machine::is_pinned({state_dir_}, backing->volume, backing->checkpoint, volume);
  return stands_on_it ? backing->volume : std::string();
}

Async<Result<std::vector<VolumeSummary>>> Volumes::list() {
  const machine::VolumeStore* store = &store_;
  co_return co_await on_worker(workers_, [store] { return store->list(); });
}

Async<Result<VolumeSummary>> Volumes::create(machine::VolumeCreateRequest request,
                                             machine::VolumeJob job) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(workers_,
                               [store, request = std::move(request), job = std::move(job)] {
                                 return store->create(request, job);
                               });
}

Async<Result<machine::ExportedVolume>> Volumes::export_directory(std::string volume, std::string to,
                                                                 machine::VolumeJob job) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(
      workers_, [store, volume = std::move(volume), to = std::move(to), job = std::move(job)] {
        return store->export_directory(volume, to, job);
      });
}

Async<Result<machine::ImportedVolume>> Volumes::import_directory(
    machine::VolumeImportRequest request, machine::VolumeJob job) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(workers_,
                               [store, request = std::move(request), job = std::move(job)] {
                                 return store->import_directory(request, job);
                               });
}

Async<Result<bool>> Volumes::is_closed(std::string volume) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(
      workers_, [store, volume = std::move(volume)] { return store->is_closed(volume); });
}

std::string Volumes::volume_at(const std::string& directory) const {
  std::error_code error;
  const auto real = std::filesystem::canonical(directory, error);
  if (error) return {};
  const auto volumes =
      std::filesystem::canonical(machine::StateLayout{state_dir_}.volumes(), error);
  if (error || real.parent_path() != volumes || !check_exists(real.filename())) return {};
  return real.filename();
}

Async<Result<void>> Volumes::remove(std::string volume) {
  machine::VolumeStore* store = &store_;
  co_return co_await on_worker(
      workers_, [store, volume = std::move(volume)] { return store->remove(volume); });
}

}  // namespace berth::control
