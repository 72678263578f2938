// Who is paused to which level, and when: by how long each container has been idle, and by the
// host's memory pressure, the longest idle first. Pure: whoever has it looks at containers and
// clocks, and carries out what it decides.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "control/configuration.h"

namespace berth::control {

/// A container that was used more recently is not paused for its memory: it would come back at
/// once.
constexpr Duration pressure_idle_min = std::chrono::seconds(10);
/// Until one that could not be paused is tried again.
constexpr Duration parking_retry = std::chrono::minutes(1);

/// "never", or a duration after which a container is parked whatever the host's times are; "" for
/// these. As in a ContainerSpecification, which has been checked.
std::vector<ParkingStep> steps_of(const std::string& park_after,
                                  const std::vector<ParkingStep>& of_host);

class ParkingPolicy {
 public:
  explicit ParkingPolicy(ParkingConfiguration configuration);

  struct Candidate {
    std::string name;
    machine::PauseLevel level = machine::PauseLevel::none;
    Duration idle{};
    std::string park_after = {};  // of its specification
    // That it can be paused to; what is to be deeper goes as deep.
    machine::PauseLevel deepest = machine::PauseLevel::hibernated;
  };
  struct Decision {
    std::string name;
    machine::PauseLevel level = machine::PauseLevel::none;
    Duration idle_min{};        // it must not have been used meanwhile
    bool for_pressure = false;  // else since it is idle
    friend bool operator==(const Decision&, const Decision&) = default;
  };
  /// Of all containers that run or are paused. `pressure`: percent, where it is known; `has_swap`:
  /// of the host. At most one of the decisions is for pressure.
  std::vector<Decision> decide(std::vector<Candidate> candidates, std::optional<double> pressure,
                               bool has_swap, Instant now);
  /// It could not be done: neither is it decided again for a while.
  void note_failure(const Decision& decision, Instant now);

  /// Whether `park_after` or the host's configuration may ever have such a container paused.
  bool concerns(const std::string& park_after) const;
  /// How often to look: no time is missed by more than a quarter of itself.
  Duration interval(const std::vector<std::string>& park_after) const;
  const ParkingConfiguration& configuration() const { return configuration_; }

 private:
  std::optional<Decision> decide_idle(const Candidate& candidate) const;
  std::optional<Decision> decide_pressure(const std::vector<Candidate>& candidates, bool has_swap,
                                          Instant now) const;
  bool failed_lately(const std::string& name, machine::PauseLevel level, Instant now) const;

  const ParkingConfiguration configuration_;
  std::optional<Instant> pressed_at_;  // the last time that one was paused for pressure
  std::map<std::pair<std::string, machine::PauseLevel>, Instant> failures_;
};

/// The percentage `some avg10` of the text of a pressure file (the kernel's
/// Documentation/accounting/psi.rst); nothing where it is something else.
std::optional<double> parse_pressure(std::string_view text);

}  // namespace berth::control
