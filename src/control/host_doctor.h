// The doctor's findings as the API shows them, for the daemon and for `berth host doctor`.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "machine/host/host_view.h"

namespace berth::control {

/// A HostReport of the API. Blocking: it tries out the host for a second or so.
nlohmann::json host_report(const machine::HostView& host);

}  // namespace berth::control
