#include "control/version.h"

namespace berth::control {

std::string_view program_version() { return BERTH_VERSION; }

}  // namespace berth::control
