// The parts of the list of actions that have files of their own, and what they share. Internal to
// actions.cc, machine_actions.cc, machine_point_actions.cc, image_operations.cc,
// container_actions.cc, template_operations.cc and kernel_operations.cc.
#pragma once

#include <vector>

#include "control/actions.h"

namespace berth::control {

std::vector<Action> machine_actions();        // vm.*
std::vector<Action> machine_point_actions();  // vm_checkpoint.*, vm_refpoint.*
std::vector<Action> image_actions();          // image.*
std::vector<Action> container_actions();      // container.*
std::vector<Action> template_actions();       // template.*
std::vector<Action> kernel_actions();         // kernel.*

inline Parameter machine_in_path() {
  return {"machine", Parameter::Place::path, Parameter::Type::machine_name,
          true,      "Name of the machine",  {}};
}
inline Parameter checkpoint_in_path() {
  return {"checkpoint", Parameter::Place::path,   Parameter::Type::point_name,
          true,         "Name of the checkpoint", {}};
}
inline Parameter refpoint_in_path() {
  return {"refpoint", Parameter::Place::path,        Parameter::Type::point_name,
          true,       "Name of the reference point", {}};
}
inline Parameter durability() {
  return {"durability",
          Parameter::Place::body,
          Parameter::Type::choice,
          false,
          "volatile: faster, but lost at a power loss and given up first when space runs out",
          {"durable", "volatile"}};
}
/// Of a conversion.
inline Parameter refpoint_to_make() {
  return {"refpoint",
          Parameter::Place::body,
          Parameter::Type::point_name,
          false,
          "Name of the reference point; the checkpoint's when left out",
          {}};
}

}  // namespace berth::control
