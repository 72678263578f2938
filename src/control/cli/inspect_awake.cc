#include "control/cli/inspect_awake.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "control/actions.h"

namespace berth::control::cli {
using Json = nlohmann::json;

Result<Json> inspect_awake(const ApiClient& client, const std::string& name) {
  const Json which = {{"container", name}};
  const auto inspect = [&] { return client.call(*find_action("container.inspect"), which); };
  const auto is_hibernated = [](const Json& shown) {
    return shown.value("state", "") == "hibernated";
  };
  Json shown = TRY(inspect());
  if (!is_hibernated(shown)) return shown;
  auto resumed = client.call(*find_action("container.resume"), which);
  if (resumed || resumed.error().kind() != ErrorKind::precondition) return resumed;
  // Somebody else was first.
  shown = TRY(inspect());
  if (!is_hibernated(shown)) return shown;
  return resumed;
}

}  // namespace berth::control::cli
