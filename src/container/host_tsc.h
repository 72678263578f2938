// How fast the host's time stamp counter counts.
//
// A guest under QEMU's emulation counts with the host's counter, and has to find out its speed by
// a timer that is emulated too: on a busy host that fails, and a microVM, which has no other clock,
// then waits for ever (Linux 6.1, calibrate_delay). So it is told.
#pragma once

#include <cstdint>

namespace berth::container {

/// In kHz, to a few parts in a million; 0 where there is none. Blocking, 20 ms; any thread.
std::uint64_t measure_host_tsc_khz();

}  // namespace berth::container
