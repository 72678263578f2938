#include "control/host_doctor.h"

#include <nlohmann/json.hpp>

#include "machine/host/doctor.h"

namespace berth::control {

nlohmann::json host_report(const machine::HostView& host) {
  using Json = nlohmann::json;
  const auto checks = machine::examine_host(host);
  Json shown = Json::array();
  for (const machine::HostCheck& check : checks) {
    shown.push_back({{"name", check.name},
                     {"group", check.group},
                     {"need", machine::to_string(check.need)},
                     {"state", machine::to_string(check.finding.state)},
                     {"detail", check.finding.detail},
                     {"cost", check.finding.cost},
                     {"remedy", check.finding.remedy}});
  }
  return {{"able", machine::missing_essentials(checks).empty()}, {"checks", std::move(shown)}};
}

}  // namespace berth::control
