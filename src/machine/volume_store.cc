#include "machine/volume_store.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "base/log.h"
#include "disk/map_file.h"
#include "machine/job_observer.h"
#include "machine/live_store.h"
#include "machine/small_file.h"
#include "machine/volume_creation.h"
#include "machine/volume_departure.h"
#include "machine/volume_directory.h"
#include "machine/volume_import.h"

namespace berth::machine {
namespace {

constexpr const char* summary_name = "volume.json";

VolumeSummary parse_summary(std::string name, const Json& json) {
  const auto text = [&json](const char* member) {
    const auto found = json.find(member);
    return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  const auto number = [&json](const char* member) -> std::uint64_t {
    const auto found = json.find(member);
    return found != json.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
  };
  VolumeSummary summary{.name = std::move(name)};
  summary.id = text("id");
  summary.size = number("size");
  summary.block_size =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(number("block_size"), UINT32_MAX));
  summary.backing = text("backing");
  summary.adopted = text("adopted");
  summary.created_at = text("created_at");
  return summary;
}

Result<void> check_request(const VolumeCreateRequest& request) {
  TRY(check_name("volume", request.name));
  const int sources = !request.backing.empty() + !request.import.empty() + !request.adopt.empty();
  if (sources > 1) {
    return failure(ErrorKind::invalid_argument,
                   "give at most one of a backing, a file to import and one to adopt");
  }
  if (sources == 0 && request.size == 0) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the volume '{}' needs a size", request.name));
  }
  return {};
}

}  // namespace

Result<void> VolumeJobObserver::check() const {
  if (!job_.stop.stop_requested()) return {};
  return failure(ErrorKind::cancelled, fmt::format("{} was cancelled", what_));
}

void VolumeJobObserver::report(const ControlProgress& progress) {
  if (job_.report) job_.report(progress);
}

VolumeStore::VolumeStore(std::string state_dir, std::string run_dir)
    : state_{std::move(state_dir)}, run_{std::move(run_dir)} {}

Result<VolumeSummary> VolumeStore::create(const VolumeCreateRequest& request,
                                          const VolumeJob& job) {
  TRY(check_request(request));
  TRY(make_directories(state_.volumes()));
  TRY(make_directories(run_.run_dir));
  clear_leftovers(state_);
  const auto loop = TRY(UringLoop::create());
  VolumeJobObserver observer(job, "making the volume");
  VolumeCreation creation(*loop, state_, run_, request, observer);
  auto created = loop->run_until_complete(creation.run());
  if (created) return created;
  return failure(std::move(created).error().with_context(
      fmt::format("cannot make the volume '{}'", request.name)));
}

Result<std::vector<VolumeSummary>> VolumeStore::list() const {
  std::vector<VolumeSummary> volumes;
  for (const std::string& name : names_in(state_.volumes())) {
    if (!is_valid_name(name) || !path_exists(state_.volume(name) + '/' + disk::MapFile::file_name))
      continue;
    auto volume = summary(name);
    if (volume) volumes.push_back(std::move(*volume));
  }
  return volumes;
}

Result<VolumeSummary> VolumeStore::summary(const std::string& name) const {
  TRY(check_name("volume", name));
  const std::string path = state_.volume(name);
  if (!path_exists(path + '/' + disk::MapFile::file_name)) {
    return failure(ErrorKind::not_found, fmt::format("there is no volume '{}'", name));
  }
  return read_summary(path, name);
}

Result<ExportedVolume> VolumeStore::export_directory(const std::string& name, const std::string& to,
                                                     const VolumeJob& job) {
  TRY(summary(name));
  clear_leftovers(state_);
  const auto loop = TRY(UringLoop::create());
  VolumeJobObserver observer(job, "the export");
  auto exported =
      loop->run_until_complete(export_volume_directory(*loop, state_, name, to, observer));
  if (exported) return exported;
  return failure(
      std::move(exported).error().with_context(fmt::format("cannot export the volume '{}'", name)));
}

Result<ImportedVolume> VolumeStore::import_directory(const VolumeImportRequest& request,
                                                     const VolumeJob& job) {
  TRY(check_name("volume", request.name));
  TRY(make_directories(state_.volumes()));
  clear_leftovers(state_);
  const auto loop = TRY(UringLoop::create());
  VolumeJobObserver observer(job, "the import");
  VolumeImport import(*loop, state_, request, observer);
  auto imported = loop->run_until_complete(import.run());
  if (imported) return imported;
  return failure(std::move(imported).error().with_context(
      fmt::format("cannot import the volume '{}'", request.name)));
}

namespace {

Task<Result<bool>> was_closed(UringLoop* loop, std::string path) {
  const auto directory = CO_TRY(open_directory(*loop, path, false));
  const auto volume = CO_TRY(co_await disk::ClosedVolume::open(*loop, *directory, true));
  co_return volume->state().clean;
}

}  // namespace

Result<bool> VolumeStore::is_closed(const std::string& name) const {
  TRY(summary(name));
  const auto loop = TRY(UringLoop::create());
  return loop->run_until_complete(was_closed(loop.get(), state_.volume(name)));
}

Result<void> VolumeStore::remove(const std::string& name) {
  TRY(summary(name));
  clear_leftovers(state_);
  const std::string path = state_.volume(name);
  TRY(check_no_dependents(state_, name));
  std::vector<Fd> locks;
  for (const char* file :
       {"", disk::MapFile::file_name, "data"}) {  // the directory for clear_leftovers()
    auto lock = try_lock(path + '/' + file);
    if (!lock && lock.error().kind() == ErrorKind::not_found)
      continue;  // what was adopted may be gone
    auto held = TRY(std::move(lock));
    if (!held)
      return failure(ErrorKind::in_use,
                     fmt::format("the volume '{}' is open: stop its keeper first", name));
    locks.push_back(std::move(*held));
  }
  const std::string removed = removing_path(state_, name);
  if (::rename(path.c_str(), removed.c_str()) != 0) {
    return errno_failure(errno, fmt::format("cannot remove the volume '{}'", name));
  }
  TRY(sync_directory(state_.volumes()));
  TRY(remove_tree(removed));
  remove_pins_of(state_, name);
  return remove_live_store(run_, name);
}

VolumeSummary read_summary(const std::string& volume_path, const std::string& name) {
  const auto text = read_small_file(volume_path + '/' + summary_name);
  const auto json = text ? parse_json(*text) : Result<Json>(Json::object());
  return parse_summary(name, json && json->is_object() ? *json : Json::object());
}

Result<void> write_summary(const std::string& volume_path, const VolumeSummary& summary) {
  const Json json = {
      {"what", "a Berth volume, for people and for lists: the engine does not read this file"},
      {"name", summary.name},
      {"id", summary.id},
      {"size", summary.size},
      {"block_size", summary.block_size},
      {"backing", summary.backing},
      {"adopted", summary.adopted},
      {"created_at", summary.created_at}};
  return write_small_file(volume_path + '/' + summary_name,
                          json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
}

void refresh_summary(const StateLayout& state, const std::string& volume,
                     const disk::VolumeInfo& info) {
  const std::string path = state.volume(volume);
  const VolumeSummary known = read_summary(path, volume);
  VolumeSummary summary = known;
  summary.id = info.id.to_string();
  summary.size = info.size;
  summary.block_size = info.block_size;
  summary.backing = info.backing;
  if (summary == known) return;
  const auto written = write_summary(path, summary);
  if (!written) log_warning("volume '{}': {}", volume, written.error().message());
}

}  // namespace berth::machine
