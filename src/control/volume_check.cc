#include "control/volume_check.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "control/spawn.h"
#include "machine/layout.h"

namespace berth::control {

using Json = nlohmann::json;

Result<Json> check_volume(const std::string& /*directory*/, const std::string& shown_as, bool /*repair*/) {
  return failure(ErrorKind::unsupported, fmt::format("cannot check '{}': this build has no offline check", shown_as));
}

Async<Result<Json>> check_volume_on(boost::asio::thread_pool& workers, std::string state_dir, std::string volume,
                                    bool repair) {
  co_return co_await on_worker(workers, [state_dir, volume, repair] {
    return check_volume(machine::StateLayout{state_dir}.volume(volume), volume, repair);
  });
}

}  // namespace berth::control
