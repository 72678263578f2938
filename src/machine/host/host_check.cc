#include "machine/host/host_check.h"

namespace berth::machine {

std::string_view to_string(CheckState state) {
  switch (state) {
    case CheckState::found: return "found";
    case CheckState::missing: return "missing";
    case CheckState::degraded: return "degraded";
    case CheckState::unknown: return "unknown";
  }
  return "unknown";
}

std::string_view to_string(CheckNeed need) {
  switch (need) {
    case CheckNeed::essential: return "essential";
    case CheckNeed::useful: return "useful";
    case CheckNeed::optional: return "optional";
  }
  return "useful";
}

std::vector<std::string_view> missing_essentials(const std::vector<HostCheck>& checks) {
  std::vector<std::string_view> names;
  for (const HostCheck& check : checks) {
    if (check.need == CheckNeed::essential && check.finding.state == CheckState::missing)
      names.push_back(check.name);
  }
  return names;
}

}  // namespace berth::machine
