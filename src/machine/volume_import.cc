#include "machine/volume_import.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include <sys/stat.h>

#include <fmt/format.h>

#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;

constexpr const char* pins_name = "pins";

bool are_on_one_file_system(const std::string& one, const std::string& other) {
  struct stat first{};
  struct stat second{};
  return ::stat(one.c_str(), &first) == 0 && ::stat(other.c_str(), &second) == 0 &&
         first.st_dev == second.st_dev;
}

}  // namespace

Task<Result<ImportedVolume>> VolumeImport::run() {
  CO_TRY(find_source());
  auto arrived = in_place_             ? co_await arrive(source_)
                 : request_.move_files ? co_await move()
                                       : co_await copy();
  if (!arrived) co_return failure(std::move(arrived).error());
  co_return ImportedVolume{.summary = std::move(arrived->summary),
                           .void_refpoints = std::move(arrived->settled.void_refpoints),
                           .lost_checkpoints = std::move(arrived->settled.lost_checkpoints)};
}

Result<void> VolumeImport::find_source() {
  if (!request_.directory.starts_with('/')) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not an absolute path", request_.directory));
  }
  std::error_code error;
  const fs::path source = fs::canonical(request_.directory, error);
  if (error) {
    return errno_failure(error.value(),
                         fmt::format("there is no directory '{}'", request_.directory));
  }
  source_ = source.string();
  const fs::path volumes = fs::canonical(state_.volumes(), error);
  if (error) return errno_failure(error.value(), fmt::format("cannot find '{}'", state_.volumes()));
  in_place_ = source == volumes / request_.name;
  if (in_place_ || std::ranges::mismatch(volumes, source).in1 != volumes.end()) return {};
  // A volume of this host, of another name, or a part of one.
  const std::string name = source.filename();
  if (source.parent_path() != volumes || !is_valid_name(name)) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is where the volumes of this host are", source_));
  }
  if (request_.arrival == disk::Arrival::copied && !request_.move_files) return {};
  return failure(ErrorKind::precondition,
                 fmt::format("'{}' is the volume '{}' of this host: it can be copied "
                             "('--copied'), and not be moved to another name",
                             source_, name));
}

Task<Result<ArrivedVolume>> VolumeImport::arrive(std::string path) {
  return import_volume_directory(loop_, std::move(path), request_.name, request_.arrival,
                                 [this](const ArrivingVolume& volume) { return accept(volume); });
}

Task<Result<ArrivedVolume>> VolumeImport::copy() {
  auto claim = CO_TRY(VolumeClaim::take(state_, request_.name));
  CO_TRY(co_await copy_volume_directory(loop_, source_, claim.path(), observer_,
                                        {.arrival = request_.arrival, .keep_modes = false}));
  CO_TRY(observer_.check());
  auto arrived = CO_TRY(co_await arrive(claim.path()));
  CO_TRY(observer_.check());
  CO_TRY(claim.publish());
  co_return arrived;
}

/// First it arrives, where it is: a death in between leaves a directory that can be imported again.
Task<Result<ArrivedVolume>> VolumeImport::move() {
  const std::string path = state_.volume(request_.name);
  if (path_exists(path)) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a volume '{}' already", request_.name));
  }
  if (!are_on_one_file_system(source_, state_.volumes())) {
    co_return failure(ErrorKind::unsupported,
                      fmt::format("'{}' is on another file system than '{}', and cannot be renamed "
                                  "to there: import it without '--move-files'",
                                  source_, state_.volumes()));
  }
  auto arrived = CO_TRY(co_await arrive(source_));
  // Who stood on its checkpoints did so on another host.
  CO_TRY(remove_tree(source_ + '/' + pins_name));
  CO_TRY(rename_directory(source_, path));
  CO_TRY(sync_directory(state_.volumes()));
  CO_TRY(sync_directory(fs::path(source_).parent_path()));
  co_return arrived;
}

Result<void> VolumeImport::accept(const ArrivingVolume& volume) const {
  TRY(check_backing_is_here(state_, volume));
  if (request_.arrival == disk::Arrival::copied) return {};
  for (const std::string& name : names_in(state_.volumes())) {
    if (!is_valid_name(name) || name == request_.name) continue;
    const auto other = read_summary(state_.volume(name), name);
    if (other.id != volume.id.to_string()) continue;
    return failure(ErrorKind::precondition,
                   fmt::format("the volume '{}' of this host is the same one ({}), so this one was "
                               "copied and not moved: import it with '--copied'",
                               name, other.id));
  }
  return {};
}

}  // namespace berth::machine
