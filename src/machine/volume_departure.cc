#include "machine/volume_departure.h"

#include <utility>

#include "machine/departure.h"
#include "machine/volume_travel.h"

namespace berth::machine {
Task<Result<ExportedVolume>> export_volume_directory(UringLoop& loop, StateLayout state,
                                                     std::string name, std::string to,
                                                     JobObserver& observer) {
  Departure departure = CO_TRY(Departure::begin(
      state, std::move(to), {.what = "volume", .home = state.volumes(), .noun = "volume"}));
  const CopiedVolume copied = CO_TRY(co_await copy_volume_directory(
      loop, state.volume(name), departure.path(), observer, VolumeCopyOptions{}));
  CO_TRY(observer.check());
  CO_TRY(departure.publish());
  co_return ExportedVolume{
      .path = departure.to(), .id = copied.id.to_string(), .bytes = copied.bytes};
}

}  // namespace berth::machine
