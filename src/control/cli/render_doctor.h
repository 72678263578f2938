// What people see of a HostReport. Pure.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace berth::control::cli {

enum class Coloring : std::uint8_t { plain, terminal };

/// A line for each check, in groups; below it, for each that is not found, what it costs and what
/// can be done; at last, whether Berth can work.
std::string render_doctor(const nlohmann::json& report, Coloring coloring);

/// The names of the report's checks that are essential and missing, with commas between; may be "".
std::string missing_essentials_of(const nlohmann::json& report);

}  // namespace berth::control::cli
