// The list of actions: vm_checkpoint.* and vm_refpoint.*. On the command line they are the verbs of
// `berth checkpoint` and `berth refpoint`, where the name is a machine's.

#include "control/action_list.h"

namespace berth::control {
namespace {

using Place = Parameter::Place;
using Type = Parameter::Type;

#define POINT_ERRORS                                                                      \
  ErrorKind::not_found, ErrorKind::precondition, ErrorKind::in_use, ErrorKind::timed_out, \
      ErrorKind::disconnected, ErrorKind::no_space

}  // namespace

std::vector<Action> machine_point_actions() {
  return {
      {.name = "vm_checkpoint.create",
       .method = Method::post,
       .path = "/v1/vms/{machine}/checkpoints",
       .summary =
           "Make a checkpoint of a machine: all of its disks at one instant, its guest at rest",
       .precondition =
           "The name is free in the machine and its volumes (already_exists); with `memory`, it "
           "is running; with `require_application`, the guest's hooks say that its applications "
           "are at rest (precondition)",
       .answer = Answer::job,
       .result = "MachineCheckpoint",
       .parameters =
           {machine_in_path(),
            {"name", Place::body, Type::point_name, true, "Name of the checkpoint", {}},
            {"memory",
             Place::body,
             Type::flag,
             false,
             "With its memory and devices, taken while it runs: a revert goes on from that instant",
             {}},
            {"no_quiesce", Place::body, Type::flag, false, "Do not ask the guest to rest", {}},
            {"require_application",
             Place::body,
             Type::flag,
             false,
             "Fail rather than make one that is less than `application`",
             {}},
            {"freeze_limit_s",
             Place::body,
             Type::count,
             false,
             "How long the guest may stay frozen, seconds; 10 when left out, at most 60",
             {}},
            durability()},
       .errors = {POINT_ERRORS, ErrorKind::already_exists, ErrorKind::limit,
                  ErrorKind::unsupported}},
      {.name = "vm_checkpoint.list",
       .method = Method::get,
       .path = "/v1/vms/{machine}/checkpoints",
       .summary = "List a machine's checkpoints",
       .result = "MachineCheckpointList",
       .parameters = {machine_in_path()},
       .errors = {POINT_ERRORS}},
      {.name = "vm_checkpoint.info",
       .method = Method::get,
       .path = "/v1/vms/{machine}/checkpoints/{checkpoint}",
       .summary = "Show a machine's checkpoint",
       .result = "MachineCheckpoint",
       .parameters = {machine_in_path(), checkpoint_in_path()},
       .errors = {POINT_ERRORS}},
      {.name = "vm_checkpoint.revert",
       .method = Method::post,
       .path = "/v1/vms/{machine}/checkpoints/{checkpoint}/revert",
       .summary = "Bring a machine back to a checkpoint, which stays; with memory, it goes on "
                  "where it was",
       .precondition =
           "The machine is not running, unless `force` is given; a memory fits the machine and "
           "its QEMU (precondition)",
       .answer = Answer::job,
       .result = "Machine",
       .parameters =
           {machine_in_path(),
            checkpoint_in_path(),
            {"disks_only",
             Place::body,
             Type::flag,
             false,
             "Leave its memory aside: the machine stays as it was, running or not, and boots",
             {}},
            {"force", Place::body, Type::flag, false, "End the machine first if it runs", {}}},
       .errors = {POINT_ERRORS, ErrorKind::limit, ErrorKind::unsupported}},
      {.name = "vm_checkpoint.export",
       .method = Method::post,
       .path = "/v1/vms/{machine}/checkpoints/{checkpoint}/export",
       .summary = "Write the disks of a machine's checkpoint to DIR/DISK.raw: whole, or what "
                  "changed since a "
                  "reference point",
       .precondition =
           "Whole: the files do not exist (already_exists). With `since`: files that exist are "
           "patched in place; the reference point can be vouched for (full_backup_required)",
       .answer = Answer::job,
       .result = "Export",
       .parameters = {machine_in_path(),
                      checkpoint_in_path(),
                      {"to", Place::body, Type::path, true, "The directory to write to", {}},
                      {"since",
                       Place::body,
                       Type::point_name,
                       false,
                       "Only what changed since this reference point",
                       {}}},
       .errors = {POINT_ERRORS, ErrorKind::already_exists, ErrorKind::full_backup_required,
                  ErrorKind::limit}},
      {.name = "vm_checkpoint.delete",
       .method = Method::remove,
       .path = "/v1/vms/{machine}/checkpoints/{checkpoint}",
       .summary = "Delete a machine's checkpoint and give its space back; its children become its "
                  "parent's",
       .precondition = "Nobody reads it, and no volume has it as backing (in_use)",
       .result = "Nothing",
       .parameters = {machine_in_path(), checkpoint_in_path()},
       .errors = {POINT_ERRORS}},
      {.name = "vm_checkpoint.convert",
       .method = Method::post,
       .path = "/v1/vms/{machine}/checkpoints/{checkpoint}/convert",
       .summary = "Make a machine's checkpoint a reference point of all of its disks: its space "
                  "comes back",
       .precondition = "Nobody reads it, and no volume has it as backing (in_use)",
       .result = "MachineRefpoint",
       .parameters = {machine_in_path(), checkpoint_in_path(), refpoint_to_make()},
       .errors = {POINT_ERRORS, ErrorKind::already_exists}},
      {.name = "vm_refpoint.list",
       .method = Method::get,
       .path = "/v1/vms/{machine}/refpoints",
       .summary = "List a machine's reference points",
       .result = "MachineRefpointList",
       .parameters = {machine_in_path()},
       .errors = {POINT_ERRORS}},
      {.name = "vm_refpoint.delete",
       .method = Method::remove,
       .path = "/v1/vms/{machine}/refpoints/{refpoint}",
       .summary = "Delete a machine's reference point in all of its disks",
       .result = "Nothing",
       .parameters = {machine_in_path(), refpoint_in_path()},
       .errors = {POINT_ERRORS}},
  };
}

#undef POINT_ERRORS

}  // namespace berth::control
