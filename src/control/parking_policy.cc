#include "control/parking_policy.h"

#include <algorithm>
#include <charconv>
#include <ranges>
#include <string_view>
#include <tuple>

#include "base/units.h"
#include "container/container_record.h"

namespace berth::control {
namespace {

using machine::PauseLevel;

constexpr Duration interval_min = std::chrono::milliseconds(200);
constexpr Duration interval_max = std::chrono::seconds(5);
constexpr Duration interval_pressed = std::chrono::seconds(1);

/// The next one that gives memory back. Frozen ones keep all of it, and what is trimmed goes to
/// swap.
PauseLevel deeper_for_memory(PauseLevel level, bool has_swap) {
  return level < PauseLevel::trimmed && has_swap ? PauseLevel::trimmed : PauseLevel::parked;
}

}  // namespace

std::vector<ParkingStep> steps_of(const std::string& park_after,
                                  const std::vector<ParkingStep>& of_host) {
  if (park_after.empty()) return of_host;
  const auto after = parse_duration(park_after);
  if (!after) return {};  // never
  return {{.level = PauseLevel::parked, .after = *after}};
}

ParkingPolicy::ParkingPolicy(ParkingConfiguration configuration)
    : configuration_(std::move(configuration)) {}

bool ParkingPolicy::concerns(const std::string& park_after) const {
  if (park_after == container::park_never) return false;
  return configuration_.pressure || !steps_of(park_after, configuration_.steps).empty();
}

Duration ParkingPolicy::interval(const std::vector<std::string>& park_after) const {
  Duration shortest = configuration_.pressure ? interval_pressed : interval_max;
  for (const std::string& text : park_after) {
    for (const ParkingStep& step : steps_of(text, configuration_.steps))
      shortest = std::min<Duration>(shortest, step.after / 4);
  }
  return std::max(shortest, interval_min);
}

std::vector<ParkingPolicy::Decision> ParkingPolicy::decide(std::vector<Candidate> candidates,
                                                           std::optional<double> pressure,
                                                           bool has_swap, Instant now) {
  std::erase_if(failures_, [&](const auto& failed) { return now - failed.second > parking_retry; });
  std::ranges::sort(candidates, [](const Candidate& one, const Candidate& other) {
    return std::tie(other.idle, one.name) < std::tie(one.idle, other.name);
  });
  std::vector<Decision> decisions;
  for (Candidate& candidate : candidates) {
    auto decision = decide_idle(candidate);
    if (!decision || failed_lately(decision->name, decision->level, now)) continue;
    candidate.level = decision->level;
    decisions.push_back(*std::move(decision));
  }
  const bool is_pressed =
      pressure && configuration_.pressure && *pressure > *configuration_.pressure;
  const bool is_early = pressed_at_ && now - *pressed_at_ < configuration_.pressure_interval;
  // What goes to sleep by itself gives memory back as well.
  if (!is_pressed || is_early || !decisions.empty()) return decisions;
  if (auto decision = decide_pressure(candidates, has_swap, now)) {
    pressed_at_ = now;
    decisions.push_back(*std::move(decision));
  }
  return decisions;
}

/// The deepest level that it has been idle long enough for.
std::optional<ParkingPolicy::Decision> ParkingPolicy::decide_idle(
    const Candidate& candidate) const {
  const std::vector<ParkingStep> steps = steps_of(candidate.park_after, configuration_.steps);
  for (const ParkingStep& step : steps | std::views::reverse) {
    if (candidate.idle < step.after) continue;
    const PauseLevel level = std::min(step.level, candidate.deepest);
    if (candidate.level >= level) return std::nullopt;
    return Decision{.name = candidate.name, .level = level, .idle_min = step.after};
  }
  return std::nullopt;
}

/// Of these, the longest idle first.
std::optional<ParkingPolicy::Decision> ParkingPolicy::decide_pressure(
    const std::vector<Candidate>& candidates, bool has_swap, Instant now) const {
  for (const Candidate& candidate : candidates) {
    const PauseLevel most = std::min(PauseLevel::parked, candidate.deepest);
    if (candidate.idle < pressure_idle_min || candidate.level >= most ||
        candidate.park_after == container::park_never)
      continue;
    const PauseLevel level = std::min(most, deeper_for_memory(candidate.level, has_swap));
    if (failed_lately(candidate.name, level, now)) continue;
    return Decision{.name = candidate.name,
                    .level = level,
                    .idle_min = pressure_idle_min,
                    .for_pressure = true};
  }
  return std::nullopt;
}

void ParkingPolicy::note_failure(const Decision& decision, Instant now) {
  failures_[{decision.name, decision.level}] = now;
}

bool ParkingPolicy::failed_lately(const std::string& name, PauseLevel level, Instant now) const {
  const auto found = failures_.find({name, level});
  return found != failures_.end() && now - found->second <= parking_retry;
}

std::optional<double> parse_pressure(std::string_view text) {
  constexpr std::string_view key = "some avg10=";
  if (!text.starts_with(key)) return std::nullopt;
  text.remove_prefix(key.size());
  double percent = 0;
  const auto [stop, code] =
      std::from_chars(text.data(), text.data() + text.size(), percent, std::chars_format::fixed);
  if (code != std::errc{} || !(percent >= 0 && percent <= 100)) return std::nullopt;
  return percent;
}

}  // namespace berth::control
