#include "control/actions.h"

#include <algorithm>

#include "control/action_list.h"

namespace berth::control {
namespace {

using Place = Parameter::Place;
using Type = Parameter::Type;

Parameter volume_in_path() {
  return {"volume", Place::path, Type::volume_name, true, "Name of the volume", {}};
}
Parameter job_in_path() { return {"job", Place::path, Type::text, true, "Id of the job", {}}; }
Parameter volume_filter() {
  return {"volume", Place::query, Type::volume_name, false, "Only those of this volume", {}};
}

// What opening a volume in its keeper may end in.
#define KEEPER_ERRORS                                                                     \
  ErrorKind::not_found, ErrorKind::in_use, ErrorKind::disconnected, ErrorKind::timed_out, \
      ErrorKind::no_space, ErrorKind::precondition

std::vector<Action> host_actions() {
  return {
      {.name = "host.info",
       .method = Method::get,
       .path = "/v1/host",
       .summary = "Show the daemon and the machine that it runs on",
       .result = "Host"},
      {.name = "host.doctor",
       .method = Method::get,
       .path = "/v1/host/doctor",
       .summary = "Try out what this host offers: each check is found, missing, degraded or "
                  "unknown, with what that costs and how to get it",
       .result = "HostReport"},
      {.name = "host.swap",
       .method = Method::post,
       .path = "/v1/host/swap",
       .summary = "Set up swap for the memory of paused containers, or take it away; and show all "
                  "that there is",
       .precondition = "The kernel has what is asked for (unsupported), and its memory and disk "
                       "have room (limit, no_space)",
       .result = "HostSwap",
       .parameters = {{"zram",
                       Place::body,
                       Type::size,
                       false,
                       "Add a device that compresses in RAM, for so many bytes; 0: none",
                       {}},
                      {"file",
                       Place::body,
                       Type::size,
                       false,
                       "Add a file of so many bytes, in the state directory; 0: none",
                       {}},
                      {"zswap",
                       Place::body,
                       Type::choice,
                       false,
                       "Whether what goes to files is compressed in RAM first",
                       {"keep", "on", "off"}},
                      {"undo",
                       Place::body,
                       Type::flag,
                       false,
                       "First take away what Berth has set up; others' swap and zswap stay",
                       {}}},
       .errors = {ErrorKind::unsupported, ErrorKind::permission, ErrorKind::no_space,
                  ErrorKind::limit, ErrorKind::already_exists}},
      {.name = "host.shutdown",
       .method = Method::post,
       .path = "/v1/host/shutdown",
       .summary = "End the daemon; machines and keepers go on unless they are asked to end too",
       .precondition = "With `keepers`, jobs that are running are cancelled, machines are ended by "
                       "force unless `machines` is given too, and clients of the volumes lose them",
       .result = "Shutdown",
       .parameters = {{"keepers",
                       Place::body,
                       Type::flag,
                       false,
                       "Close every volume and end its keeper",
                       {}},
                      {"machines",
                       Place::body,
                       Type::flag,
                       false,
                       "Have every machine shut down first, the last one that was started first",
                       {}}},
       .errors = {ErrorKind::timed_out}},
      {.name = "events.watch",
       .method = Method::get,
       .path = "/v1/events",
       .summary = "Follow what happens, a line each, until the client goes",
       .answer = Answer::stream,
       .result = "Event",
       .parameters =
           {{"since",
             Place::query,
             Type::count,
             false,
             "Begin after the event with this number, as far back as is remembered; left out: now",
             {}}},
       .errors = {ErrorKind::limit}},
  };
}

std::vector<Action> volume_actions() {
  return {
      {.name = "volume.create",
       .method = Method::post,
       .path = "/v1/volumes",
       .summary =
           "Make a volume: empty, over a backing, from a copy of a file, or of a raw disk as it is",
       .precondition = "The name is free (already_exists); at most one of backing, import, adopt "
                       "and file_system is given, and a size unless one of them has it",
       .answer = Answer::job,
       .result = "VolumeSummary",
       .parameters =
           {{"name", Place::body, Type::volume_name, true, "Name of the new volume", {}},
            {"size", Place::body, Type::size, false, "Size of the disk", {}},
            {"block_size",
             Place::body,
             Type::size,
             false,
             "What changes are tracked in: a power of two from 4 KiB to 2 MiB, 64 KiB when left "
             "out",
             {}},
            {"backing",
             Place::body,
             Type::text,
             false,
             "Where absent blocks are read from: a path of a raw or qcow2, vmdk, vhdx, vdi image, "
             "volume:NAME@CHECKPOINT, or an NBD URI",
             {}},
            {"import", Place::body, Type::path, false, "Copy this disk image into the volume", {}},
            {"adopt",
             Place::body,
             Type::path,
             false,
             "Take this raw file or block device as the volume's data, in place",
             {}},
            {"file_system",
             Place::body,
             Type::choice,
             false,
             "Make a file system in the volume, as containers need one",
             {"none", "ext4"}}},
       .errors = {ErrorKind::already_exists, ErrorKind::not_found, ErrorKind::in_use,
                  ErrorKind::no_space, ErrorKind::limit, ErrorKind::unsupported}},
      {.name = "volume.list",
       .method = Method::get,
       .path = "/v1/volumes",
       .summary = "List the volumes",
       .result = "VolumeList"},
      {.name = "volume.info",
       .method = Method::get,
       .path = "/v1/volumes/{volume}",
       .summary = "Show a volume",
       .precondition = "The volume can be opened",
       .result = "Volume",
       .parameters = {volume_in_path()},
       .errors = {KEEPER_ERRORS}},
      {.name = "volume.resize",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/resize",
       .summary = "Change a volume's size",
       .precondition = "To shrink it: it has no checkpoints (precondition)",
       .result = "VolumeSize",
       .parameters = {volume_in_path(),
                      {"size", Place::body, Type::size, true, "The new size", {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::limit}},
      {.name = "volume.delete",
       .method = Method::remove,
       .path = "/v1/volumes/{volume}",
       .summary = "Delete a volume with everything in it; an adopted block device keeps its bytes",
       .precondition = "It is not served, nothing works on it, and no volume has a checkpoint of "
                       "it as backing (in_use)",
       .result = "Nothing",
       .parameters = {volume_in_path()},
       .errors = {KEEPER_ERRORS}},
      {.name = "volume.serve",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/listeners",
       .summary = "Serve a volume over NBD, with its checkpoints as VOLUME@CHECKPOINT",
       .precondition = "Over TCP: TLS, a loopback address, or `insecure` (precondition)",
       .answer = Answer::created,
       .result = "Listener",
       .parameters =
           {volume_in_path(),
            {"unix",
             Place::body,
             Type::path,
             false,
             "Path of a UNIX socket; with neither this nor tcp, a socket in the run directory",
             {}},
            {"tcp",
             Place::body,
             Type::address,
             false,
             "Address and port; port 0 takes a free one",
             {}},
            {"tls_dir",
             Place::body,
             Type::path,
             false,
             "Directory with server-cert.pem, server-key.pem and ca-cert.pem; clients need a "
             "certificate of that CA",
             {}},
            {"insecure",
             Place::body,
             Type::flag,
             false,
             "Serve TCP without TLS to other machines",
             {}},
            {"read_only", Place::body, Type::flag, false, "Refuse writes to the live disk", {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::permission}},
      {.name = "volume.unserve",
       .method = Method::remove,
       .path = "/v1/volumes/{volume}/listeners",
       .summary =
           "Stop serving a volume: on one socket, or on all of them; clients are disconnected",
       .precondition = "A socket that is named is one of the volume's listeners (not_found)",
       .result = "ListenerList",
       .parameters = {volume_in_path(),
                      {"unix", Place::query, Type::path, false, "Path of the UNIX socket", {}},
                      {"tcp", Place::query, Type::address, false, "Address and port", {}}},
       .errors = {KEEPER_ERRORS}},
      {.name = "volume.populate",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/populate",
       .summary = "Copy what is still only in the backing into the volume, while it is in use",
       .answer = Answer::job,
       .result = "Populated",
       .parameters = {volume_in_path(),
                      {"rate",
                       Place::body,
                       Type::size,
                       false,
                       "At most so many bytes a second; 0: no limit",
                       {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::limit}},
      {.name = "volume.export",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/export",
       .summary = "Copy a volume's whole directory, with its checkpoints and reference points, so "
                  "that it can be moved to another host",
       .precondition = "It is not served, nothing works on it (in_use), and its data is its own, "
                       "not adopted; there is nothing at the new place (already_exists)",
       .answer = Answer::job,
       .result = "ExportedVolume",
       .parameters = {volume_in_path(),
                      {"to",
                       Place::body,
                       Type::path,
                       true,
                       "The directory that is made, and becomes the volume's",
                       {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::already_exists, ErrorKind::limit}},
      {.name = "volume.import",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/import",
       .summary = "Take in the directory of a volume that comes from elsewhere",
       .precondition =
           "The name is free (already_exists), or the directory is this volume's already; exactly "
           "one of moved and copied is given. Moved: the volume was closed, and its data file has "
           "kept its size and its time of modification; what it stands on is here. The directory "
           "has not been opened as a volume before (precondition)",
       .answer = Answer::job,
       .result = "ImportedVolume",
       .parameters =
           {volume_in_path(),
            {"directory", Place::body, Type::path, true, "The directory of the volume", {}},
            {"moved",
             Place::body,
             Type::flag,
             false,
             "The original is gone: this is the same volume, and its reference points stay good",
             {}},
            {"copied",
             Place::body,
             Type::flag,
             false,
             "The original goes on: this becomes another volume with the same checkpoints, and its "
             "reference points begin anew",
             {}},
            {"move_files",
             Place::body,
             Type::flag,
             false,
             "Do not copy the directory: rename it, on the same file system",
             {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::already_exists, ErrorKind::limit, ErrorKind::corrupt,
                  ErrorKind::unsupported}},
      {.name = "volume.check",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/check",
       .summary = "Verify every structure of a volume that is not open",
       .precondition = "It is not served and nothing works on it (in_use)",
       .answer = Answer::job,
       .result = "CheckReport",
       .parameters = {volume_in_path(),
                      {"repair", Place::body, Type::flag, false, "Mend what can be mended", {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::limit}},
  };
}

std::vector<Action> checkpoint_actions() {
  return {
      {.name = "checkpoint.create",
       .method = Method::post,
       .path = "/v1/checkpoints",
       .summary = "Make a checkpoint of one volume, or of several at the same instant",
       .precondition = "The name is free in every volume (already_exists); of several volumes, all "
                       "get it or none",
       .answer = Answer::created,
       .result = "Cut",
       .parameters = {{"volumes", Place::body, Type::volume_names, true, "The volumes", {}},
                      {"name", Place::body, Type::point_name, true, "Name of the checkpoint", {}},
                      durability(),
                      {"refpoint",
                       Place::body,
                       Type::point_name,
                       false,
                       "Make a reference point of this name too, at the same cut",
                       {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::already_exists, ErrorKind::limit}},
      {.name = "checkpoint.list",
       .method = Method::get,
       .path = "/v1/checkpoints",
       .summary = "List the checkpoints of one volume or of all",
       .precondition = "The volumes can be opened",
       .result = "CheckpointList",
       .parameters = {volume_filter()},
       .errors = {KEEPER_ERRORS}},
      {.name = "checkpoint.info",
       .method = Method::get,
       .path = "/v1/volumes/{volume}/checkpoints/{checkpoint}",
       .summary = "Show a checkpoint",
       .result = "Checkpoint",
       .parameters = {volume_in_path(), checkpoint_in_path()},
       .errors = {KEEPER_ERRORS}},
      {.name = "checkpoint.revert",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/checkpoints/{checkpoint}/revert",
       .summary = "Set the live disk back to a checkpoint, which stays",
       .precondition = "No guest uses the disk: nobody checks that",
       .answer = Answer::job,
       .result = "Nothing",
       .parameters = {volume_in_path(), checkpoint_in_path()},
       .errors = {KEEPER_ERRORS, ErrorKind::limit}},
      {.name = "checkpoint.export",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/checkpoints/{checkpoint}/export",
       .summary =
           "Write a checkpoint to a raw file: whole, or only what changed since a reference point",
       .precondition = "Whole: the file does not exist (already_exists). With `since`: a file that "
                       "exists is taken for the disk "
                       "as it was at the reference point and patched in place; the reference point "
                       "can be vouched for "
                       "(full_backup_required)",
       .answer = Answer::job,
       .result = "Export",
       .parameters = {volume_in_path(),
                      checkpoint_in_path(),
                      {"to", Place::body, Type::path, true, "The file to write", {}},
                      {"since",
                       Place::body,
                       Type::point_name,
                       false,
                       "Only what changed since this reference point",
                       {}},
                      {"nonce",
                       Place::body,
                       Type::id,
                       false,
                       "Must be the nonce of that reference point",
                       {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::limit}},
      {.name = "checkpoint.delete",
       .method = Method::remove,
       .path = "/v1/volumes/{volume}/checkpoints/{checkpoint}",
       .summary = "Delete a checkpoint and give its space back; the live disk stays as it is",
       .precondition = "Nobody reads it, and no volume has it as backing (in_use)",
       .result = "Nothing",
       .parameters = {volume_in_path(), checkpoint_in_path()},
       .errors = {KEEPER_ERRORS}},
  };
}

std::vector<Action> refpoint_actions() {
  return {
      {.name = "refpoint.create",
       .method = Method::post,
       .path = "/v1/refpoints",
       .summary = "Make a reference point in one volume, or in several at the same instant",
       .precondition = "The name is free in every volume (already_exists); of several volumes, all "
                       "get it or none",
       .answer = Answer::created,
       .result = "Cut",
       .parameters =
           {{"volumes", Place::body, Type::volume_names, true, "The volumes", {}},
            {"name", Place::body, Type::point_name, true, "Name of the reference point", {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::already_exists, ErrorKind::limit}},
      {.name = "refpoint.convert",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/checkpoints/{checkpoint}/convert",
       .summary =
           "Make a checkpoint a reference point: its space comes back, its place in time stays",
       .precondition = "Nobody reads the checkpoint, and no volume has it as backing (in_use)",
       .result = "Refpoint",
       .parameters = {volume_in_path(), checkpoint_in_path(), refpoint_to_make()},
       .errors = {KEEPER_ERRORS, ErrorKind::already_exists}},
      {.name = "refpoint.list",
       .method = Method::get,
       .path = "/v1/refpoints",
       .summary = "List the reference points of one volume or of all",
       .precondition = "The volumes can be opened",
       .result = "RefpointList",
       .parameters = {volume_filter()},
       .errors = {KEEPER_ERRORS}},
      {.name = "refpoint.export",
       .method = Method::get,
       .path = "/v1/volumes/{volume}/refpoints/{refpoint}",
       .summary = "Show a reference point in the form in which it is kept beside a backup",
       .result = "RefpointFile",
       .parameters = {volume_in_path(), refpoint_in_path()},
       .errors = {KEEPER_ERRORS}},
      {.name = "refpoint.import",
       .method = Method::post,
       .path = "/v1/volumes/{volume}/refpoints",
       .summary =
           "Bring an exported reference point back: find the volume's own record of that cut",
       .precondition =
           "The volume is the one it was made in and still has the record (full_backup_required)",
       .result = "Refpoint",
       .parameters =
           {volume_in_path(),
            {"format", Place::body, Type::choice, true, "As exported", {"berth-refpoint"}},
            {"version", Place::body, Type::count, true, "As exported: 1", {}},
            {"volume_name", Place::body, Type::text, false, "As exported", {}},
            {"volume_id", Place::body, Type::id, true, "As exported", {}},
            {"name", Place::body, Type::point_name, true, "As exported", {}},
            {"epoch", Place::body, Type::count, true, "As exported", {}},
            {"nonce", Place::body, Type::id, true, "As exported", {}},
            {"created_at", Place::body, Type::text, false, "As exported", {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::full_backup_required, ErrorKind::unsupported}},
      {.name = "refpoint.delete",
       .method = Method::remove,
       .path = "/v1/volumes/{volume}/refpoints/{refpoint}",
       .summary = "Delete a reference point",
       .result = "Nothing",
       .parameters = {volume_in_path(), refpoint_in_path()},
       .errors = {KEEPER_ERRORS}},
      {.name = "changes.list",
       .method = Method::get,
       .path = "/v1/volumes/{volume}/changes",
       .summary = "List what changed since a reference point, until a checkpoint or now",
       .precondition =
           "The reference point can be vouched for (full_backup_required, with the reason)",
       .result = "Changes",
       .parameters = {volume_in_path(),
                      {"since",
                       Place::query,
                       Type::point_name,
                       true,
                       "A reference point or a checkpoint",
                       {}},
                      {"nonce",
                       Place::query,
                       Type::id,
                       false,
                       "Must be the nonce of that reference point",
                       {}},
                      {"until",
                       Place::query,
                       Type::point_name,
                       false,
                       "A checkpoint; left out: the live disk, now",
                       {}},
                      {"offset", Place::query, Type::size, false, "Begin here", {}},
                      {"length",
                       Place::query,
                       Type::size,
                       false,
                       "Look at so much; left out: to the end",
                       {}},
                      {"extents_max",
                       Place::query,
                       Type::count,
                       false,
                       "At most so many extents in the page, and never more than 16384",
                       {}}},
       .errors = {KEEPER_ERRORS, ErrorKind::full_backup_required}},
  };
}

std::vector<Action> job_actions() {
  return {
      {.name = "job.list",
       .method = Method::get,
       .path = "/v1/jobs",
       .summary = "List jobs: those that are running, and those that ended",
       .result = "JobList",
       .parameters =
           {{"state",
             Place::query,
             Type::choice,
             false,
             "Only those in this state",
             {"all", "running", "done", "failed", "cancelled"}},
            {"count", Place::query, Type::count, false, "At most so many; 100 when left out", {}}}},
      {.name = "job.info",
       .method = Method::get,
       .path = "/v1/jobs/{job}",
       .summary = "Show a job",
       .result = "Job",
       .parameters = {job_in_path()},
       .errors = {ErrorKind::not_found}},
      {.name = "job.watch",
       .method = Method::get,
       .path = "/v1/jobs/{job}/watch",
       .summary = "Follow a job: a line each time it has moved, until it has ended",
       .answer = Answer::stream,
       .result = "Job",
       .parameters = {job_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::limit}},
      {.name = "job.cancel",
       .method = Method::post,
       .path = "/v1/jobs/{job}/cancel",
       .summary = "Ask a job to end; one that cannot stop half way ends as it would have",
       .precondition = "It is running (precondition)",
       .result = "Job",
       .parameters = {job_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::precondition}},
  };
}

#undef KEEPER_ERRORS

std::vector<Action> make_actions() {
  std::vector<Action> all;
  for (auto part : {host_actions(), volume_actions(), checkpoint_actions(), refpoint_actions(),
                    machine_actions(), machine_point_actions(), image_actions(),
                    container_actions(), template_actions(), kernel_actions(), job_actions()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace

std::string_view to_string(Method method) {
  switch (method) {
    case Method::get: return "GET";
    case Method::post: return "POST";
    case Method::remove: return "DELETE";
  }
  return "GET";
}

const std::vector<Action>& actions() {
  static const std::vector<Action> all = make_actions();
  return all;
}

const Action* find_action(std::string_view name) {
  const auto found = std::ranges::find(actions(), name, &Action::name);
  return found == actions().end() ? nullptr : &*found;
}

std::vector<ErrorKind> errors_of(const Action& action) {
  std::vector<ErrorKind> kinds = action.errors;
  kinds.insert(kinds.end(), {ErrorKind::invalid_argument, ErrorKind::io_error, ErrorKind::corrupt,
                             ErrorKind::internal});
  std::ranges::sort(kinds);
  kinds.erase(std::ranges::unique(kinds).begin(), kinds.end());
  return kinds;
}

unsigned success_status(const Action& action) {
  switch (action.answer) {
    case Answer::created: return 201;
    case Answer::job: return 202;
    case Answer::upgrade: return 101;
    case Answer::result:
    case Answer::stream: return 200;
  }
  return 200;
}

unsigned http_status(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid_argument: return 400;
    case ErrorKind::permission: return 403;
    case ErrorKind::not_found: return 404;
    case ErrorKind::already_exists:
    case ErrorKind::in_use:
    case ErrorKind::read_only:
    case ErrorKind::cancelled: return 409;
    case ErrorKind::precondition:
    case ErrorKind::full_backup_required: return 412;
    case ErrorKind::limit: return 422;
    case ErrorKind::unsupported: return 501;
    case ErrorKind::disconnected:
    case ErrorKind::protocol: return 503;
    case ErrorKind::timed_out: return 504;
    case ErrorKind::no_space: return 507;
    case ErrorKind::io_error:
    case ErrorKind::corrupt:
    case ErrorKind::internal: return 500;
  }
  return 500;
}

}  // namespace berth::control
