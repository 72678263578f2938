// Taking in one volume's directory (volume_travel.h) as a volume of this host: copied into a
// directory of its own, which gets the volume's name when all is durable; or renamed; or where it
// is.
//
// One loop, which waits for it. What was copied goes when the object goes without success.
#pragma once

#include <optional>
#include <string>

#include "async/uring_loop.h"
#include "base/result.h"
#include "machine/job_observer.h"
#include "machine/layout.h"
#include "machine/volume_claim.h"
#include "machine/volume_store.h"
#include "machine/volume_travel.h"

namespace berth::machine {

class VolumeImport {
 public:
  /// All of them outlive it.
  VolumeImport(UringLoop& loop, const StateLayout& state, const VolumeImportRequest& request,
               JobObserver& observer)
      : loop_(loop), state_(state), request_(request), observer_(observer) {}

  /// Once.
  Task<Result<ImportedVolume>> run();

 private:
  Result<void> find_source();
  Task<Result<ArrivedVolume>> arrive(std::string path);
  Task<Result<ArrivedVolume>> copy();
  Task<Result<ArrivedVolume>> move();
  Result<void> accept(const ArrivingVolume& volume) const;

  UringLoop& loop_;
  const StateLayout& state_;
  const VolumeImportRequest& request_;
  JobObserver& observer_;
  std::string source_;     // canonical
  bool in_place_ = false;  // it is the directory of that name among the volumes
};

}  // namespace berth::machine
