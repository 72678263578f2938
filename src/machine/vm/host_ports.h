// Ports of the host that a machine's user network is to listen on. Blocking; short.
#pragma once

#include "base/result.h"
#include "machine/vm/specification.h"

namespace berth::machine {

/// `in_use` with the address where somebody has one of them already: said before anything is
/// started.
Result<void> check_host_ports(const MachineSpecification& specification);

}  // namespace berth::machine
