// The parts of the list of actions that have files of their own. Internal to actions.cc.
#pragma once

#include <vector>

#include "control/actions.h"

namespace berth::control {

std::vector<Action> machine_actions();        // vm.*
std::vector<Action> machine_point_actions();  // vm_checkpoint.*, vm_refpoint.*

}  // namespace berth::control
