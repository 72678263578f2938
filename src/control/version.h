// What this build calls itself.
#pragma once

#include <string_view>

namespace berth::control {

constexpr std::string_view program_version = "0.1.0";
constexpr int api_version = 1;

}  // namespace berth::control
