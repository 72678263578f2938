#include "machine/volume_departure.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/volume_directory.h"
#include "machine/volume_travel.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;

/// The directory that is filled, beside the one that it becomes.
class Departure {
 public:
  Departure(StateLayout state, std::string to) : state_(std::move(state)), to_(std::move(to)) {}
  Departure(const Departure&) = delete;
  Departure& operator=(const Departure&) = delete;
  ~Departure() {
    if (lock_ && !published_) (void)remove_tree(path_);
    if (!mark_.empty()) ::unlink(mark_.c_str());
  }

  Result<void> begin() {
    while (to_.size() > 1 && to_.ends_with('/')) to_.pop_back();
    const fs::path to(to_);
    if (!to.is_absolute() || !to.has_filename() || to.filename() == "." || to.filename() == "..") {
      return failure(
          ErrorKind::invalid_argument,
          fmt::format("'{}' cannot become the volume's directory: write an absolute path", to_));
    }
    std::error_code error;
    const fs::path parent = fs::canonical(to.parent_path(), error);
    if (error) {
      return errno_failure(error.value(), fmt::format("there is no directory '{}' to export into",
                                                      to.parent_path().string()));
    }
    const fs::path volumes = fs::weakly_canonical(state_.volumes(), error);
    if (std::ranges::mismatch(volumes, parent).in1 == volumes.end()) {
      return failure(
          ErrorKind::invalid_argument,
          fmt::format("'{}' is where the volumes of this host are: 'berth volume import' "
                      "makes a copy of one there",
                      to_));
    }
    if (path_exists(to_)) {
      return failure(ErrorKind::already_exists,
                     fmt::format("'{}' exists: remove it, or choose another name", to_));
    }
    parent_ = parent.string();
    to_ = (parent / to.filename()).string();
    path_ = (parent / fmt::format(".{}.berth-export", to.filename().string())).string();
    lock_ = TRY(claim_directory(path_, fmt::format("somebody exports to '{}' already", to_)));
    mark_ = TRY(mark_for_clearing(state_, path_));
    return {};
  }

  const std::string& path() const { return path_; }
  const std::string& to() const { return to_; }

  Result<void> publish() {
    TRY(rename_directory(path_, to_));
    published_ = true;
    return sync_directory(parent_);
  }

 private:
  const StateLayout state_;
  std::string to_;
  std::string parent_;
  std::string path_;
  std::string mark_;
  Fd lock_;
  bool published_ = false;
};

}  // namespace

Task<Result<ExportedVolume>> export_volume_directory(UringLoop& loop, StateLayout state,
                                                     std::string name, std::string to,
                                                     JobObserver& observer) {
  Departure departure(state, std::move(to));
  CO_TRY(departure.begin());
  const CopiedVolume copied = CO_TRY(co_await copy_volume_directory(
      loop, state.volume(name), departure.path(), observer, VolumeCopyOptions{}));
  CO_TRY(observer.check());
  CO_TRY(departure.publish());
  co_return ExportedVolume{
      .path = departure.to(), .id = copied.id.to_string(), .bytes = copied.bytes};
}

}  // namespace berth::machine
