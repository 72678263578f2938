// What this build calls itself.
#pragma once

#include <string_view>

namespace berth::control {

/// "0.1.0"
std::string_view program_version();

constexpr int api_version = 1;

}  // namespace berth::control
