// machine.json and state.json: structures to JSON and back.

#include <fmt/format.h>

#include "machine/control_messages.h"
#include "machine/vm/machine_store.h"

namespace berth::machine {
namespace {

constexpr const char* record_format = "berth-machine";
constexpr int record_version = 1;
constexpr std::uint64_t slot_max = 63;

Result<AttachedDisk::Kind> decode_kind(const Json& json) {
  const std::string kind = TRY(text_param(json, "kind"));
  if (kind == "disk") return AttachedDisk::Kind::disk;
  if (kind == "cdrom") return AttachedDisk::Kind::cdrom;
  if (kind == "seed") return AttachedDisk::Kind::seed;
  return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no kind of disk", kind));
}

const char* name_of(AttachedDisk::Kind kind) {
  switch (kind) {
    case AttachedDisk::Kind::disk: return "disk";
    case AttachedDisk::Kind::cdrom: return "cdrom";
    case AttachedDisk::Kind::seed: return "seed";
  }
  return "disk";
}

Result<std::uint64_t> bounded(const Json& json, const char* name, std::uint64_t most) {
  const std::uint64_t number = TRY(required_number_param(json, name));
  if (number <= most) return number;
  return failure(ErrorKind::invalid_argument,
                 fmt::format("{}: {} is more than {}", name, number, most));
}

}  // namespace

Result<MachineDisk> decode_machine_disk(const Json& json) {
  MachineDisk disk;
  disk.node = TRY(required_text_param(json, "node"));
  disk.volume = TRY(required_text_param(json, "volume"));
  disk.own = TRY(flag_param(json, "own"));
  disk.read_only = TRY(flag_param(json, "read_only"));
  disk.kind = TRY(decode_kind(json));
  disk.slot = static_cast<std::uint8_t>(TRY(bounded(json, "slot", slot_max)));
  return disk;
}

Json encode(const MachineDisk& disk) {
  return {{"node", disk.node},           {"volume", disk.volume},      {"own", disk.own},
          {"read_only", disk.read_only}, {"kind", name_of(disk.kind)}, {"slot", disk.slot}};
}

Json encode(const AttachedDisk& disk) {
  return {{"node", disk.node},           {"socket", disk.socket},      {"export", disk.export_name},
          {"read_only", disk.read_only}, {"kind", name_of(disk.kind)}, {"slot", disk.slot}};
}

Result<AttachedDisk> decode_attached_disk(const Json& json) {
  AttachedDisk disk;
  disk.node = TRY(required_text_param(json, "node"));
  disk.socket = TRY(required_text_param(json, "socket"));
  disk.export_name = TRY(required_text_param(json, "export"));
  disk.read_only = TRY(flag_param(json, "read_only"));
  disk.kind = TRY(decode_kind(json));
  disk.slot = static_cast<std::uint8_t>(TRY(bounded(json, "slot", slot_max)));
  return disk;
}

Json encode(const MachineRecord& record) {
  Json disks = Json::array();
  for (const MachineDisk& disk : record.disks) disks.push_back(encode(disk));
  return {{"format", record_format},         {"version", record_version},
          {"id", record.id.to_string()},     {"uid", record.uid},
          {"created_at", record.created_at}, {"specification", encode(record.specification)},
          {"disks", std::move(disks)}};
}

Result<MachineRecord> decode_machine_record(const Json& json) {
  if (!json.is_object() || TRY(text_param(json, "format")) != record_format) {
    return failure(ErrorKind::corrupt, "this is no record of a machine");
  }
  if (TRY(required_number_param(json, "version")) != record_version) {
    return failure(ErrorKind::unsupported,
                   "the record of the machine is of a newer version of Berth");
  }
  MachineRecord record;
  const std::string id = TRY(required_text_param(json, "id"));
  record.id = TRY(Id128::parse(id));
  record.uid = static_cast<std::uint32_t>(TRY(bounded(json, "uid", UINT32_MAX)));
  record.created_at = TRY(text_param(json, "created_at"));
  const auto specification = json.find("specification");
  if (specification == json.end()) {
    return failure(ErrorKind::corrupt, "the record of the machine has no specification");
  }
  record.specification = TRY(decode_machine(*specification));
  const auto disks = json.find("disks");
  if (disks == json.end() || !disks->is_array() || disks->size() > 64) {
    return failure(ErrorKind::corrupt, "the record of the machine has no list of disks");
  }
  for (const Json& disk : *disks) record.disks.push_back(TRY(decode_machine_disk(disk)));
  return record;
}

}  // namespace berth::machine
