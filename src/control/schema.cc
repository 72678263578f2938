#include "control/schema.h"

namespace berth::control {
namespace {

// What volumes, checkpoints and reference points look like is the keeper's word
// (docs/formats/keeper-control.md), without what only the daemon needs to know.
std::vector<Schema> make_schemas() {
  return {
      {"Error",
       "Why a request was not done",
       {{"error", "ErrorDetail", "What went wrong"}}},
      {"ErrorDetail",
       "One error: programs branch on `kind`, people read `message`",
       {{"kind", "string", "A stable name, such as not_found or full_backup_required"},
        {"message", "string", "What failed, on what, why, and what to do about it"}}},
      {"Nothing", "Done; there is nothing to say about it", {}},
      {"Host",
       "The daemon and the machine that it runs on",
       {{"version", "string", "Of Berth"},
        {"api_version", "integer", "Of this interface"},
        {"hostname", "string", "The machine's name"},
        {"kernel", "string", "Release of the running kernel"},
        {"cpus", "integer", "CPUs that are online"},
        {"memory_bytes", "integer", "Memory of the machine"},
        {"pid", "integer", "Process id of the daemon"},
        {"started_at", "time", "When the daemon was started"},
        {"state_dir", "string", "Where volumes and the catalogue are"},
        {"run_dir", "string", "Where sockets are"},
        {"state_bytes_free", "integer", "Free space of the file system with the state directory"},
        {"state_bytes_total", "integer", "Size of the file system with the state directory"},
        {"volumes", "integer", "How many volumes there are"},
        {"keepers", "integer", "How many of them are open in a keeper"},
        {"jobs_running", "integer", "Jobs that have not ended"}}},
      {"Shutdown",
       "A daemon that is about to end",
       {{"keepers_stopped", "integer", "Keepers that closed their volumes and ended"}}},
      {"Listener",
       "A socket on which a volume is served over NBD",
       {{"uri", "string", "The NBD URI for clients"},
        {"transport", "string", "unix or tcp"},
        {"address", "string", "The socket's path, or host:port"},
        {"export", "string", "The export that the URI names"},
        {"tls", "boolean", "Whether clients need TLS and a certificate"},
        {"read_only", "boolean", "Whether the live disk is served read-only"},
        {"connections", "integer", "Clients connected now"}}},
      {"ListenerList",
       "Listeners that were closed",
       {{"listeners", "Listener[]", "In no particular order"}}},
      {"VolumeSummary",
       "A volume as its directory shows it, without opening it",
       {{"name", "string", "Name of the volume"},
        {"id", "id", "Stays the same for the volume's life"},
        {"size", "integer", "Size of the disk, bytes"},
        {"block_size", "integer", "What changes are tracked in, bytes"},
        {"backing", "string", "Where absent blocks are read from; empty for none"},
        {"adopted", "string", "The file or device that is its data, empty for its own"},
        {"created_at", "time", "When it was made"},
        {"state", "string", "closed, opening, open, served or failed"},
        {"error", "string", "With state failed: what is wrong; else empty"}}},
      {"VolumeList", "All volumes", {{"volumes", "VolumeSummary[]", "By name"}}},
      {"Volume",
       "A volume, opened by its keeper",
       {{"name", "string", "Name of the volume"},
        {"id", "id", "Stays the same for the volume's life"},
        {"size", "integer", "Size of the disk, bytes"},
        {"block_size", "integer", "What changes are tracked in, bytes"},
        {"backing", "string", "Where absent blocks are read from; empty for none"},
        {"epoch", "integer", "The current epoch: the number of cuts and one"},
        {"failed", "boolean", "A sync has failed: nothing is written before the volume is opened again"},
        {"hot_regions", "integer", "Regions of 4 MiB that a power loss now would over-report"},
        {"hot_regions_max", "integer", "The most that they can be"},
        {"held_bytes", "integer", "Space that checkpoints hold"},
        {"requests_in_flight", "integer", "Reads and writes under way"},
        {"checkpoints", "integer", "How many checkpoints there are"},
        {"refpoints", "integer", "How many reference points there are"},
        {"keeper_pid", "integer", "Process id of the keeper"},
        {"listeners", "Listener[]", "Where the volume is served"}}},
      {"VolumeSize",
       "A volume's size",
       {{"name", "string", "Name of the volume"}, {"size", "integer", "Size of the disk, bytes"}}},
      {"Populated", "What a population copied", {{"copied", "integer", "Bytes copied from the backing"}}},
      {"CheckReport",
       "What an offline check of a volume found",
       {{"volume", "string", "Name or directory of the volume"},
        {"clean", "boolean", "Whether nothing is wrong (any more)"},
        {"repaired", "boolean", "Whether something was mended"},
        {"findings", "string[]", "What was found, a sentence each"}}},
      {"Checkpoint",
       "A restorable image of a volume at a cut",
       {{"volume", "string", "Name of the volume"},
        {"name", "string", "Name of the checkpoint"},
        {"epoch", "integer", "The last epoch that is part of it"},
        {"consistency", "string", "What really happened: crash, filesystem or application"},
        {"durability", "string", "durable, or volatile: given up at a power loss or when space runs out"},
        {"size", "integer", "Size of the disk at the cut, bytes"},
        {"created_at", "time", "When the cut was made"},
        {"held_bytes", "integer", "Space that would come back with its deletion"},
        {"group", "id?", "The cut over several volumes that it belongs to, or null"},
        {"lost", "boolean", "Volatile, and given up for space"}}},
      {"CheckpointList", "Checkpoints", {{"checkpoints", "Checkpoint[]", "By volume and epoch"}}},
      {"Refpoint",
       "A reference point: a moment that changes can be asked about. It holds no data",
       {{"volume", "string", "Name of the volume"},
        {"name", "string", "Name of the reference point"},
        {"volume_id", "id", "Id of the volume"},
        {"epoch", "integer", "The last epoch before it"},
        {"nonce", "id", "What tells this cut from any other"},
        {"created_at", "time", "When the cut was made"},
        {"exact", "boolean", "false: a power loss since then makes answers over-report"},
        {"group", "id?", "The cut over several volumes that it belongs to, or null"}}},
      {"RefpointList", "Reference points", {{"refpoints", "Refpoint[]", "By volume and epoch"}}},
      {"RefpointFile",
       "A reference point to keep elsewhere, beside the backup that it belongs to",
       {{"format", "string", "berth-refpoint"},
        {"version", "integer", "1"},
        {"volume_name", "string", "Name that the volume had"},
        {"volume_id", "id", "Id of the volume"},
        {"name", "string", "Name of the reference point"},
        {"epoch", "integer", "The last epoch before it"},
        {"nonce", "id", "What tells this cut from any other"},
        {"created_at", "time", "When the cut was made"}}},
      {"CutPart",
       "One volume's part in a cut",
       {{"volume", "string", "Name of the volume"},
        {"epoch", "integer", "The last epoch before the cut"},
        {"gate_closed_us", "integer", "How long writes waited, in microseconds"},
        {"checkpoint", "Checkpoint?", "What was made, or null"},
        {"refpoint", "Refpoint?", "What was made, or null"}}},
      {"Cut",
       "A cut over one or several volumes at once",
       {{"group", "id?", "What ties the volumes together; null for a single one"},
        {"volumes", "CutPart[]", "In the order of the request"}}},
      {"Export",
       "A checkpoint, written to a file",
       {{"path", "string", "The file"},
        {"since", "string?", "The reference point, or null for the whole disk"},
        {"extents", "integer", "Extents that were changed or written"},
        {"bytes", "integer", "Bytes in them"},
        {"exact", "boolean", "false: after a power loss, more was taken than had changed"}}},
      {"Changes",
       "What changed since a reference point, in pages",
       {{"volume", "string", "Name of the volume"},
        {"since", "string", "The reference point"},
        {"until", "string?", "The checkpoint, or null for the live disk"},
        {"extents", "integer[][]", "Pairs of offset and length in bytes: in order, disjoint, not touching"},
        {"exact", "boolean", "false: a power loss lies between, and this may over-report"},
        {"next_offset", "integer", "Where the next page begins, bytes"},
        {"complete", "boolean", "Whether nothing is left after this page"}}},
      {"Job",
       "Work that goes on after its request was answered",
       {{"id", "string", "Names the job"},
        {"kind", "string", "The operation, such as checkpoint.export"},
        {"target", "string", "What it works on"},
        {"state", "string", "running, done, failed or cancelled"},
        {"phase", "string", "What it is doing now, for people"},
        {"bytes_done", "integer", "Bytes dealt with"},
        {"bytes_total", "integer?", "Bytes to deal with; null while unknown"},
        {"bytes_per_second", "integer?", "The recent rate; null while unknown"},
        {"eta_seconds", "integer?", "Time left at that rate; null while unknown"},
        {"created_at", "time", "When it was started"},
        {"ended_at", "time?", "When it ended"},
        {"error", "ErrorDetail?", "Why it failed"},
        {"result", "object?", "What the operation promises as its result, once it is done"}}},
      {"JobList", "Jobs", {{"jobs", "Job[]", "The youngest first"}}},
      {"Event",
       "Something that happened",
       {{"sequence", "integer", "Counts from 1 in the life of a daemon"},
        {"at", "time", "When"},
        {"kind", "string", "A stable name, such as keeper_ended or checkpoint_lost"},
        {"volume", "string?", "The volume that it concerns"},
        {"job", "string?", "The job that it concerns"},
        {"message", "string", "For people"}}},
  };
}

}  // namespace

const std::vector<Schema>& schemas() {
  static const std::vector<Schema> all = make_schemas();
  return all;
}

const Schema* find_schema(std::string_view name) {
  for (const Schema& schema : schemas()) {
    if (schema.name == name) return &schema;
  }
  return nullptr;
}

TypeParts parse_type(std::string_view type) {
  TypeParts parts;
  if (type.ends_with('?')) {
    parts.nullable = true;
    type.remove_suffix(1);
  }
  while (type.ends_with("[]")) {
    ++parts.list_depth;
    type.remove_suffix(2);
  }
  parts.base = type;
  return parts;
}

}  // namespace berth::control
