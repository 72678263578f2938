// Places where tests have a process die, between two steps of something that has to survive it.
//
//   fault_point("making.recorded");
//
// Nothing happens unless the environment's BERTH_FAULT_POINTS names a file with exactly that name
// in it, when the process takes the file away and ends itself with SIGKILL. So a point is met once:
// by the first process that comes to it, and not again by the next one that goes on with the work.
// Each name is used in one place, with a word before its dot for what is being done. Where the
// variable is not set this costs one branch; where it is, a look at the file: for steps that
// somebody waits for as a whole, not for what is done for every request. Any thread.
#pragma once

#include <string_view>

namespace berth {

void fault_point(std::string_view name);

}  // namespace berth
