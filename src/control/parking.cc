#include "control/parking.h"

#include <fstream>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "control/container_creation.h"
#include "control/spawn.h"
#include "memory/memory_use.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using container::ContainerRecord;
using machine::PauseLevel;

constexpr Milliseconds info_timeout{3'000};

Instant now() { return std::chrono::steady_clock::now(); }

/// A microVM alone can be more.
PauseLevel deepest_of(const container::ContainerSpecification& container) {
  using Isolation = container::ContainerSpecification::Isolation;
  return container.isolation == Isolation::process ? PauseLevel::trimmed : PauseLevel::hibernated;
}

/// Of what its keeper says; nothing where it neither runs nor is paused.
std::optional<PauseLevel> level_of(const Json& info) {
  const std::string state = info.value("state", "");
  if (state == "running") return PauseLevel::none;
  const auto level = machine::parse_pause_level(state);
  return level ? std::optional(*level) : std::nullopt;
}

}  // namespace

Parking::Parking(Executor executor, ParkingConfiguration configuration, Containers& containers,
                 EventLog& events)
    : executor_(executor),
      policy_(std::move(configuration)),
      containers_(containers),
      events_(events),
      changed_(std::move(executor)) {}

void Parking::begin() {
  if (quitting_) return;
  is_on_ = true;
  start(executor_, go_on());
}

Async<void> Parking::quit() {
  quitting_ = true;
  changed_.notify();
  while (is_on_) co_await changed_.wait();
}

Async<void> Parking::go_on() {
  while (!quitting_) {
    const Duration interval = co_await look();
    if (!quitting_)
      (void)co_await changed_.wait_for(std::chrono::duration_cast<Milliseconds>(interval));
  }
  is_on_ = false;
  changed_.notify();
}

/// Until the next look.
Async<Duration> Parking::look() {
  std::vector<ContainerRecord> records;
  std::vector<std::string> times;
  for (ContainerRecord& record : co_await containers_.list()) {
    const container::ContainerSpecification& is = record.specification;
    if (!policy_.concerns(is.park_after)) continue;
    if (!containers_.is_on(is.name) || is.labels.contains(template_label)) continue;
    times.push_back(is.park_after);
    records.push_back(std::move(record));
  }
  if (!records.empty()) {
    auto candidates = co_await find_candidates(std::move(records));
    const auto decisions =
        policy_.decide(std::move(candidates), pressure(), memory::has_swap(), now());
    for (const ParkingPolicy::Decision& decision : decisions)
      if (!quitting_) co_await carry_out(decision);
  }
  co_return policy_.interval(times);
}

Async<std::vector<ParkingPolicy::Candidate>> Parking::find_candidates(
    std::vector<ContainerRecord> records) {
  std::vector<Candidate> candidates;
  for (const ContainerRecord& record : records) {
    const std::string& name = record.specification.name;
    if (quitting_ || !containers_.is_on(name)) continue;
    const auto info = co_await containers_.call(name, "container.info", Json::object(),
                                                {.timeout = info_timeout});
    if (!info) continue;
    const auto level = level_of(*info);
    if (!level) continue;
    candidates.push_back(
        {.name = name,
         .level = *level,
         .idle = std::chrono::milliseconds(info->value("idle_ms", std::uint64_t{0})),
         .park_after = record.specification.park_after,
         .deepest = deepest_of(record.specification)});
  }
  co_return candidates;
}

Async<void> Parking::carry_out(ParkingPolicy::Decision decision) {
  const auto idle = std::chrono::duration_cast<Milliseconds>(decision.idle_min);
  const std::string level(to_string(decision.level));
  // A daemon that ends does not wait for it: the keeper carries it out all the same.
  const auto paused = co_await containers_.pause(decision.name, decision.level, idle);
  if (paused) {
    log_info("container {}: {}, {}", decision.name, level,
             decision.for_pressure ? "since the host is short of memory" : "since it is idle");
    co_return;
  }
  // It was used meanwhile, or somebody else has paused it, or has ended it.
  if (quitting_ || !containers_.is_on(decision.name)) co_return;
  const auto info = co_await containers_.call(decision.name, "container.info", Json::object(),
                                              {.timeout = info_timeout});
  if (!info) co_return;
  const auto found = level_of(*info);
  if (!found || *found >= decision.level || info->value("idle_ms", std::int64_t{0}) < idle.count())
    co_return;
  policy_.note_failure(decision, now());
  events_.publish("container_not_paused", {.container = decision.name}, paused.error().message());
}

std::optional<double> Parking::pressure() {
  if (!policy_.configuration().pressure) return std::nullopt;
  const std::string& path = policy_.configuration().pressure_file;
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const auto percent = parse_pressure(line);
  if (!percent && !std::exchange(pressure_fails_, true))
    log_warning("the memory pressure of the host is not known: '{}' cannot be read", path);
  if (percent) pressure_fails_ = false;
  return percent;
}

}  // namespace berth::control
