#include "machine/departure.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "machine/volume_directory.h"

namespace berth::machine {

namespace fs = std::filesystem;

Departure::Departure(std::string parent, std::string to, std::string path, Fd lock,
                     std::string mark)
    : parent_(std::move(parent)),
      to_(std::move(to)),
      path_(std::move(path)),
      lock_(std::move(lock)),
      mark_(std::move(mark)) {}

Departure::Departure(Departure&& other) noexcept
    : parent_(std::move(other.parent_)),
      to_(std::move(other.to_)),
      path_(std::move(other.path_)),
      lock_(std::move(other.lock_)),
      mark_(std::exchange(other.mark_, {})) {}

Departure::~Departure() {
  if (lock_) (void)remove_tree(path_);
  if (!mark_.empty()) ::unlink(mark_.c_str());
}

Result<Departure> Departure::begin(StateLayout state, std::string wanted,
                                   const Traveller& traveller) {
  while (wanted.size() > 1 && wanted.ends_with('/')) wanted.pop_back();
  const fs::path to(wanted);
  if (!to.is_absolute() || !to.has_filename() || to.filename() == "." || to.filename() == "..") {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' cannot become the {}'s directory: write an absolute path",
                               wanted, traveller.what));
  }
  std::error_code error;
  const fs::path parent = fs::canonical(to.parent_path(), error);
  if (error) {
    return errno_failure(error.value(), fmt::format("there is no directory '{}' to export into",
                                                    to.parent_path().string()));
  }
  const fs::path home = fs::weakly_canonical(traveller.home, error);
  if (std::ranges::mismatch(home, parent).in1 == home.end()) {
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("'{}' is where the {}s of this host are: 'berth {} import' makes a copy "
                    "of one there",
                    wanted, traveller.what, traveller.noun));
  }
  if (path_exists(wanted)) {
    return failure(ErrorKind::already_exists,
                   fmt::format("'{}' exists: remove it, or choose another name", wanted));
  }
  std::string path = (parent / fmt::format(".{}.berth-export", to.filename().string())).string();
  Fd lock = TRY(claim_directory(
      path, fmt::format("somebody exports to '{}' already", (parent / to.filename()).string())));
  auto mark = mark_for_clearing(state, path);
  Departure departure(parent.string(), (parent / to.filename()).string(), std::move(path),
                      std::move(lock), mark.value_or(std::string()));
  if (!mark) return failure(std::move(mark).error());
  return departure;
}

Result<void> Departure::publish() {
  TRY(rename_directory(path_, to_));
  lock_.reset();
  return sync_directory(parent_);
}

}  // namespace berth::machine
