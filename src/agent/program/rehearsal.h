// `rehearse`: what a clone that waits for its name can have done once before. An emulated CPU
// translates the guest's code when it first comes to it, which is most of what a clone takes to
// become one and to answer its first request, and a physical one maps the pages of it. So the agent
// goes the ways that lead there, with a process of its own in the place of the workload, which
// stays frozen: frozen and thawed, listening, asked, and answering with a file.
#pragma once

#include <cstdint>

#include "agent/program/workload.h"

namespace berth::agent {

/// Starts the process that stands in for the workload: it answers one connection to this port of
/// the loopback, and ends; by itself after some seconds.
Result<std::uint16_t> rehearse(Workload& workload);

}  // namespace berth::agent
