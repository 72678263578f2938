#include "machine/vm/machine_hibernation_record.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "machine/control_messages.h"

namespace berth::machine {
namespace {

constexpr const char* record_format = "berth-machine-hibernation";
constexpr unsigned record_version = 1;
constexpr std::size_t disks_max = 64;

Result<MachineHibernation> decode(const Json& json) {
  if (!json.is_object() || TRY(text_param(json, "format")) != record_format)
    return failure(ErrorKind::invalid_argument, "it is no record of a machine that is hibernated");
  if (TRY(required_number_param(json, "version")) != record_version)
    return failure(ErrorKind::unsupported, "it is of a newer version of Berth");
  MachineHibernation record;
  record.saved = TRY(decode_saved_guest_state(json));
  record.machine_type = TRY(text_param(json, "machine"));
  record.cpu_model = TRY(text_param(json, "cpu"));
  record.cpus = static_cast<unsigned>(TRY(required_number_param(json, "cpus")));
  const Json disks = json.value("disks", Json::array());
  if (!disks.is_array() || disks.size() > disks_max)
    return failure(ErrorKind::invalid_argument, "disks: expected a list of disks");
  for (const Json& disk : disks) record.disks.push_back(TRY(decode_attached_disk(disk)));
  return record;
}

bool is_same_disk(const AttachedDisk& one, const AttachedDisk& other) {
  return one.node == other.node && one.export_name == other.export_name &&
         one.read_only == other.read_only && one.kind == other.kind && one.slot == other.slot;
}

}  // namespace

Json encode(const MachineHibernation& record) {
  Json disks = Json::array();
  for (const AttachedDisk& disk : record.disks) disks.push_back(encode(disk));
  Json json = encode(record.saved);
  json.update({{"format", record_format},
               {"version", record_version},
               {"machine", record.machine_type},
               {"cpu", record.cpu_model},
               {"cpus", record.cpus},
               {"disks", std::move(disks)}});
  return json;
}

Result<MachineHibernation> decode_machine_hibernation(std::string_view text) {
  const auto json = parse_json(text);
  auto record = json ? decode(*json) : failure(json.error());
  if (record || record.error().kind() == ErrorKind::unsupported) return record;
  return failure(ErrorKind::corrupt, record.error().message());
}

Result<void> check_fits(const MachineHibernation& record, const MachineSpecification& specification,
                        const std::vector<AttachedDisk>& disks) {
  std::string differs;
  if (record.machine_type != specification.machine_type) differs = "machine type";
  if (record.cpu_model != specification.cpu_model) differs = "CPU model";
  const auto had = [&record](const AttachedDisk& disk) {
    return std::ranges::any_of(
        record.disks, [&disk](const AttachedDisk& each) { return is_same_disk(each, disk); });
  };
  if (record.disks.size() != disks.size() || !std::ranges::all_of(disks, had)) differs = "disks";
  if (differs.empty()) return {};
  return failure(ErrorKind::precondition,
                 fmt::format("what was saved does not fit: the machine's {} {} another now",
                             differs, differs == "disks" ? "are" : "is"));
}

Result<MachineHibernation> read_machine_hibernation(const std::string& directory) {
  auto record = decode_machine_hibernation(TRY(read_hibernation_file(directory)));
  if (!record) {
    return failure(std::move(record).error().with_context(
        fmt::format("'{}' cannot be read", hibernation_file(directory))));
  }
  return record;
}

}  // namespace berth::machine
