// What one look at the host found: a state, what was seen, what its absence costs, how to get it.
//
// Plain data. Names of checks, states and needs are stable: programs branch on them (host.doctor of
// the API, `berth host doctor -o json`).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace berth::machine {

enum class CheckState : std::uint8_t {
  found,     // it is there, and does what Berth needs
  missing,   // it is not there, or may not be used
  degraded,  // it is there, and does less than it could
  unknown,   // this could not be tried
};
std::string_view to_string(CheckState state);

enum class CheckNeed : std::uint8_t {
  essential,  // Berth cannot work without it
  useful,     // a part of Berth is slower without it, or not there
  optional,   // only some features need it, or none yet
};
std::string_view to_string(CheckNeed need);

/// What a probe says. `cost` and `remedy` are empty where the state is `found`.
struct Finding {
  CheckState state = CheckState::unknown;
  std::string detail;  // what was seen, one short line
  std::string cost;    // what is lost
  std::string remedy;  // what an administrator can do
};

inline Finding found(std::string detail) { return {CheckState::found, std::move(detail), {}, {}}; }
inline Finding missing(std::string detail, std::string cost, std::string remedy) {
  return {CheckState::missing, std::move(detail), std::move(cost), std::move(remedy)};
}
inline Finding degraded(std::string detail, std::string cost, std::string remedy) {
  return {CheckState::degraded, std::move(detail), std::move(cost), std::move(remedy)};
}
inline Finding unknown(std::string detail, std::string cost, std::string remedy) {
  return {CheckState::unknown, std::move(detail), std::move(cost), std::move(remedy)};
}

struct HostCheck {
  std::string_view name;   // "io_uring"
  std::string_view group;  // for people: "kernel"
  CheckNeed need = CheckNeed::useful;
  Finding finding;
};

/// The names of what is essential and missing; empty where Berth can work.
std::vector<std::string_view> missing_essentials(const std::vector<HostCheck>& checks);

}  // namespace berth::machine
