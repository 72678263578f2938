// The list of actions: vm.*

#include "control/action_list.h"

namespace berth::control {
namespace {

using Place = Parameter::Place;
using Type = Parameter::Type;

Parameter timeout() {
  return {"timeout_s",
          Place::body,
          Type::count,
          false,
          "How long the guest may take to shut down before it is ended by force, seconds; the "
          "machine's own stop_timeout when left out",
          {}};
}

Parameter force() { return {"force", Place::body, Type::flag, false, "By force, at once", {}}; }

// What a request to a running machine's keeper may end in.
#define MACHINE_ERRORS                                                                    \
  ErrorKind::not_found, ErrorKind::precondition, ErrorKind::in_use, ErrorKind::timed_out, \
      ErrorKind::disconnected

}  // namespace

std::vector<Action> machine_actions() {
  return {
      {.name = "vm.create",
       .method = Method::post,
       .path = "/v1/vms",
       .summary = "Make a machine and its disks from a vm.toml",
       .precondition = "The name is free among machines and volumes (already_exists), images and "
                       "kernels are there (not_found); all of it is made, or nothing",
       .answer = Answer::job,
       .result = "Machine",
       .parameters = {{"specification", Place::body, Type::text, true, "The text of a vm.toml", {}},
                      {"name",
                       Place::body,
                       Type::machine_name,
                       false,
                       "In place of the name in the vm.toml",
                       {}},
                      {"file", Place::body, Type::text, false, "What to call it in messages", {}},
                      {"directory",
                       Place::body,
                       Type::path,
                       false,
                       "Where relative paths in it begin; / when left out",
                       {}}},
       .errors = {ErrorKind::already_exists, ErrorKind::not_found, ErrorKind::in_use,
                  ErrorKind::no_space, ErrorKind::limit, ErrorKind::unsupported}},
      {.name = "vm.list",
       .method = Method::get,
       .path = "/v1/vms",
       .summary = "List the machines",
       .result = "MachineList"},
      {.name = "vm.info",
       .method = Method::get,
       .path = "/v1/vms/{machine}",
       .summary = "Show a machine, with its guest's addresses where an agent tells them",
       .result = "Machine",
       .parameters = {machine_in_path()},
       .errors = {MACHINE_ERRORS}},
      {.name = "vm.start",
       .method = Method::post,
       .path = "/v1/vms/{machine}/start",
       .summary = "Start a machine, or have one go on that is hibernated",
       .precondition =
           "It is not running (precondition); its disks and ports are free (in_use); its "
           "memory fits beside that of the others into RAM and swap (limit)",
       .result = "Machine",
       .parameters = {machine_in_path(),
                      {"suspended", Place::body, Type::flag, false, "Do not let it run yet", {}}},
       .errors = {MACHINE_ERRORS, ErrorKind::limit, ErrorKind::no_space, ErrorKind::unsupported}},
      {.name = "vm.stop",
       .method = Method::post,
       .path = "/v1/vms/{machine}/stop",
       .summary =
           "Have the guest shut down, by ACPI and by its agent; after a time, end it by force",
       .precondition = "It is running (precondition), or hibernated: then it goes on to shut down; "
                       "with `force`, what was saved is given up",
       .result = "Machine",
       .parameters = {machine_in_path(), timeout(), force()},
       .errors = {MACHINE_ERRORS, ErrorKind::limit, ErrorKind::no_space, ErrorKind::corrupt}},
      {.name = "vm.restart",
       .method = Method::post,
       .path = "/v1/vms/{machine}/restart",
       .summary = "Stop a machine and start it",
       .precondition = "It is running (precondition)",
       .result = "Machine",
       .parameters = {machine_in_path(), timeout(), force()},
       .errors = {MACHINE_ERRORS, ErrorKind::limit, ErrorKind::no_space, ErrorKind::unsupported}},
      {.name = "vm.suspend",
       .method = Method::post,
       .path = "/v1/vms/{machine}/suspend",
       .summary = "Have a machine stand still, and its memory go to a cheaper place",
       .precondition = "It is running, or suspended at a lighter level; trimmed: the host has swap "
                       "(precondition)",
       .result = "Machine",
       .parameters =
           {machine_in_path(),
            {"level",
             Place::body,
             Type::choice,
             false,
             "frozen (when left out): its virtual CPUs are not scheduled; trimmed: and its private "
             "memory is swapped out; parked: or in page files in its directory; hibernated: and "
             "its QEMU ends; it takes no memory, and survives a restart of the host, and its "
             "disks are not written to before it goes on",
             {"frozen", "trimmed", "parked", "hibernated"}}},
       .errors = {MACHINE_ERRORS, ErrorKind::no_space, ErrorKind::limit, ErrorKind::unsupported}},
      {.name = "vm.resume",
       .method = Method::post,
       .path = "/v1/vms/{machine}/resume",
       .summary = "Have a machine go on that stands still, and set its guest's clock where an "
                  "agent does so",
       .precondition =
           "It is running or suspended; of one that is hibernated: the host has QEMU and "
           "accelerator as they were (precondition), and its memory fits, as at a start (limit)",
       .result = "Machine",
       .parameters = {machine_in_path()},
       .errors = {MACHINE_ERRORS, ErrorKind::limit, ErrorKind::no_space, ErrorKind::corrupt}},
      {.name = "vm.set",
       .method = Method::post,
       .path = "/v1/vms/{machine}/set",
       .summary =
           "Change a machine: limits and policies at once, CPUs and memory from its next start on",
       .result = "Machine",
       .parameters = {machine_in_path(),
                      {"cpus", Place::body, Type::count, false, "Virtual CPUs", {}},
                      {"memory", Place::body, Type::size, false, "Memory", {}},
                      {"autostart",
                       Place::body,
                       Type::choice,
                       false,
                       "Start it with the host",
                       {"on", "off"}},
                      {"on_crash",
                       Place::body,
                       Type::choice,
                       false,
                       "What to do when QEMU or the guest's kernel dies",
                       {"restart", "preserve"}},
                      {"stop_timeout_s",
                       Place::body,
                       Type::count,
                       false,
                       "How long its guest may take to shut down, seconds",
                       {}},
                      {"limit_cpus",
                       Place::body,
                       Type::text,
                       false,
                       "At most so much of the host's CPUs, such as 1.5; 0 for no limit",
                       {}},
                      {"limit_memory",
                       Place::body,
                       Type::size,
                       false,
                       "At most so much memory beside its own; 0 for no limit",
                       {}}},
       .errors = {MACHINE_ERRORS, ErrorKind::unsupported}},
      {.name = "vm.attach",
       .method = Method::post,
       .path = "/v1/vms/{machine}/disks",
       .summary = "Give a machine another disk, also while it runs",
       .precondition =
           "The volume is not another running machine's (in_use); the machine has room for "
           "a disk (limit)",
       .result = "Machine",
       .parameters =
           {machine_in_path(),
            {"volume", Place::body, Type::volume_name, true, "The volume", {}},
            {"disk",
             Place::body,
             Type::text,
             false,
             "What the disk is called in the machine, its serial number; the volume's name when "
             "left out",
             {}},
            {"read_only", Place::body, Type::flag, false, "The guest may not write it", {}}},
       .errors = {MACHINE_ERRORS, ErrorKind::already_exists, ErrorKind::limit}},
      {.name = "vm.detach",
       .method = Method::remove,
       .path = "/v1/vms/{machine}/disks/{disk}",
       .summary = "Take a disk from a machine; of one that runs, the guest has to give it back",
       .precondition =
           "It is not one that was made with the machine (precondition); a guest that runs "
           "gives it back in time (timed_out)",
       .result = "Machine",
       .parameters =
           {machine_in_path(),
            {"disk", Place::path, Type::text, true, "Name of the disk in the machine", {}}},
       .errors = {MACHINE_ERRORS}},
      {.name = "vm.export",
       .method = Method::post,
       .path = "/v1/vms/{machine}/export",
       .summary = "Copy a machine that is off to a directory, from which another host takes it in "
                  "with all of "
                  "its checkpoints and reference points",
       .precondition =
           "It is not running, and its disks are closed (in_use); the directory does not exist "
           "(already_exists)",
       .answer = Answer::job,
       .result = "ExportedMachine",
       .parameters = {machine_in_path(),
                      {"to", Place::body, Type::path, true, "The directory to make", {}}},
       .errors = {MACHINE_ERRORS, ErrorKind::already_exists, ErrorKind::no_space,
                  ErrorKind::limit}},
      {.name = "vm.import",
       .method = Method::post,
       .path = "/v1/vms/import",
       .summary =
           "Take in a machine's directory: exported, or copied as it is while the machine was off",
       .precondition =
           "Exactly one of `moved` and `copied` is given; the name is free (already_exists); with "
           "`moved`, its disks were closed and nothing has changed them since (precondition)",
       .answer = Answer::job,
       .result = "ImportedMachine",
       .parameters =
           {{"from", Place::body, Type::path, true, "The directory", {}},
            {"moved",
             Place::body,
             Type::flag,
             false,
             "The original is gone: this is the same machine, and its reference points stay good",
             {}},
            {"copied",
             Place::body,
             Type::flag,
             false,
             "The original goes on: this becomes another machine, and increments begin anew",
             {}},
            {"name", Place::body, Type::machine_name, false, "In place of its own name", {}}},
       .errors = {MACHINE_ERRORS, ErrorKind::already_exists, ErrorKind::no_space, ErrorKind::limit,
                  ErrorKind::unsupported}},
      {.name = "vm.delete",
       .method = Method::remove,
       .path = "/v1/vms/{machine}",
       .summary = "Delete a machine with the disks that were made with it",
       .precondition =
           "It is not running (precondition), and no volume stands on a checkpoint of its "
           "disks (in_use)",
       .result = "Nothing",
       .parameters = {machine_in_path()},
       .errors = {MACHINE_ERRORS}},
  };
}

#undef MACHINE_ERRORS

}  // namespace berth::control
