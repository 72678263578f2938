// The doctor: tries out everything on this host that Berth needs, or is better with.
//
// Every check really tries what it can (it makes a ring, writes a page and scans for it, clones a
// file) rather than look at a version, and leaves nothing behind: no file, no cgroup, no process.
// It needs no daemon. Blocking, on any thread, for a second or so; programs that are asked for
// their version get ten seconds each. It does not fail: what cannot be tried is `unknown`.
#pragma once

#include <string_view>
#include <vector>

#include "machine/host/host_check.h"
#include "machine/host/host_view.h"

namespace berth::machine {

/// All checks, grouped, in the order in which people read them.
std::vector<HostCheck> examine_host(const HostView& host);

/// The names of the checks without which Berth cannot work.
std::vector<std::string_view> essential_checks();

}  // namespace berth::machine
