#include "machine/volume_claim.h"

#include <utility>

#include <fmt/format.h>

#include "machine/volume_directory.h"

namespace berth::machine {

VolumeClaim::VolumeClaim(StateLayout state, std::string volume, Fd lock)
    : state_(std::move(state)),
      volume_(std::move(volume)),
      path_(creating_path(state_, volume_)),
      lock_(std::move(lock)) {}

VolumeClaim::VolumeClaim(VolumeClaim&& other) noexcept = default;

VolumeClaim::~VolumeClaim() {
  if (lock_ && !published_) (void)remove_tree(path_);
}

Result<VolumeClaim> VolumeClaim::take(const StateLayout& state, const std::string& volume) {
  VolumeClaim claim(
      state, volume,
      TRY(claim_directory(creating_path(state, volume),
                          fmt::format("somebody is making the volume '{}' already", volume))));
  if (!path_exists(state.volume(volume))) return claim;
  return failure(ErrorKind::already_exists, fmt::format("there is a volume '{}' already", volume));
}

Result<void> VolumeClaim::publish() {
  TRY(sync_directory(path_));
  TRY(rename_directory(path_, state_.volume(volume_)));
  published_ = true;
  return sync_directory(state_.volumes());
}

}  // namespace berth::machine
