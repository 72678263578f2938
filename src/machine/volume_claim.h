// VolumeClaim: a new volume's directory while it is filled. It gets the volume's name when all of
// it is there; until then it lies beside the volumes under a name that is none, and goes with the
// object. Blocking.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "machine/layout.h"

namespace berth::machine {

class VolumeClaim {
 public:
  /// already_exists if there is such a volume; `in_use` while somebody else is making it.
  static Result<VolumeClaim> take(const StateLayout& state, const std::string& volume);
  VolumeClaim(VolumeClaim&& other) noexcept;
  VolumeClaim& operator=(VolumeClaim&& other) = delete;
  /// Removes what was not published.
  ~VolumeClaim();

  const std::string& path() const { return path_; }
  bool is_published() const { return published_; }
  /// Durably. The files in it are durable already.
  Result<void> publish();

 private:
  VolumeClaim(StateLayout state, std::string volume, Fd lock);

  StateLayout state_;
  std::string volume_;
  std::string path_;
  Fd lock_;
  bool published_ = false;
};

}  // namespace berth::machine
