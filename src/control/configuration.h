// What an administrator has set: berth.toml (docs/berth-toml.md), read once when the daemon starts.
#pragma once

#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/vm/pause_record.h"

namespace berth::control {

constexpr const char* default_configuration_file = "/etc/berth/berth.toml";

/// Those that an idle container may go through by itself, the lightest first.
constexpr std::array parking_levels = {machine::PauseLevel::frozen, machine::PauseLevel::trimmed,
                                       machine::PauseLevel::parked,
                                       machine::PauseLevel::hibernated};

/// A container that has been idle for `after` is paused to `level`.
struct ParkingStep {
  machine::PauseLevel level = machine::PauseLevel::none;
  std::chrono::milliseconds after{0};
  friend bool operator==(const ParkingStep&, const ParkingStep&) = default;
};

/// [parking]. Without a step and a pressure nothing is paused by itself.
struct ParkingConfiguration {
  std::vector<ParkingStep> steps;  // each deeper and later than the one before
  std::optional<double> pressure;  // percent: `some avg10` of the pressure file
  std::chrono::milliseconds pressure_interval{10'000};  // from one container to the next
  std::string pressure_file = "/proc/pressure/memory";
};

struct Configuration {
  ParkingConfiguration parking;
};

/// `invalid_argument` with the file, the line and what was expected there; the first mistake.
Result<Configuration> parse_configuration(std::string_view text, std::string_view file);
/// Of a file that is there. `path` "": the default one, which may be missing.
Result<Configuration> load_configuration(const std::string& path);

}  // namespace berth::control
