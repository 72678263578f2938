#include "machine/vm/machine_points.h"

#include <algorithm>

#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "base/fault_point.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr const char* checkpoint_format = "berth-machine-checkpoint";
constexpr const char* record_name = "/checkpoint.json";
constexpr const char* refpoint_format = "berth-machine-refpoint";
constexpr int version = 1;
constexpr std::size_t disks_max = 64;

constexpr std::pair<MachineCheckpoint::Phase, const char*> phases[] = {
    {MachineCheckpoint::Phase::making, "making"},
    {MachineCheckpoint::Phase::whole, "whole"},
    {MachineCheckpoint::Phase::converting, "converting"},
    {MachineCheckpoint::Phase::deleting, "deleting"}};

Json encode(const MachineCheckpoint& checkpoint) {
  Json disks = Json::array();
  for (const MachineDisk& disk : checkpoint.disks) disks.push_back(machine::encode(disk));
  const char* phase =
      std::ranges::find(phases, checkpoint.phase, [](auto& each) { return each.first; })->second;
  const MachineStamp& stamp = checkpoint.stamp;
  return {{"format", checkpoint_format},
          {"version", version},
          {"name", checkpoint.name},
          {"phase", phase},
          {"parent", checkpoint.parent},
          {"created_at", checkpoint.created_at},
          {"consistency", to_string(checkpoint.consistency)},
          {"reason", checkpoint.reason},
          {"memory", checkpoint.memory},
          {"suspended", checkpoint.suspended},
          {"stamp",
           {{"qemu", stamp.qemu},
            {"machine", stamp.machine_type},
            {"cpu", stamp.cpu_model},
            {"memory", stamp.memory},
            {"cpus", stamp.cpus},
            {"accelerator", stamp.accelerator}}},
          {"disks", std::move(disks)},
          {"frozen_us", checkpoint.frozen_us},
          {"stopped_us", checkpoint.stopped_us},
          {"refpoint", checkpoint.refpoint}};
}

Result<Json> read_record(const std::string& path, const char* format) {
  const std::string text = TRY(read_small_file(path));
  Json json = TRY(parse_json(text));
  if (!json.is_object() || json.value("format", std::string()) != format)
    return failure(ErrorKind::corrupt, fmt::format("'{}' is not what its name says", path));
  if (json.value("version", 0) != version)
    return failure(ErrorKind::unsupported,
                   fmt::format("'{}' is of a newer version of Berth", path));
  return json;
}

Result<MachineStamp> decode_stamp(const Json& json) {
  MachineStamp stamp;
  stamp.qemu = TRY(text_param(json, "qemu"));
  stamp.machine_type = TRY(text_param(json, "machine"));
  stamp.cpu_model = TRY(text_param(json, "cpu"));
  stamp.memory = TRY(number_param(json, "memory")).value_or(0);
  stamp.cpus = static_cast<unsigned>(TRY(number_param(json, "cpus")).value_or(0));
  stamp.accelerator = TRY(text_param(json, "accelerator"));
  return stamp;
}

Result<MachineCheckpoint> decode_checkpoint(const Json& json) {
  MachineCheckpoint checkpoint;
  checkpoint.name = TRY(required_text_param(json, "name"));
  const std::string phase = TRY(required_text_param(json, "phase"));
  const auto known =
      std::ranges::find(phases, phase, [](auto& each) { return std::string(each.second); });
  if (known == std::end(phases))
    return failure(ErrorKind::corrupt, fmt::format("'{}' is no phase of a checkpoint", phase));
  checkpoint.phase = known->first;
  checkpoint.parent = TRY(text_param(json, "parent"));
  checkpoint.created_at = TRY(text_param(json, "created_at"));
  const std::string consistency = TRY(required_text_param(json, "consistency"));
  checkpoint.consistency = TRY(consistency_from_string(consistency));
  checkpoint.reason = TRY(text_param(json, "reason"));
  checkpoint.memory = TRY(flag_param(json, "memory"));
  checkpoint.suspended = TRY(flag_param(json, "suspended"));
  checkpoint.stamp = TRY(decode_stamp(json.value("stamp", Json::object())));
  checkpoint.frozen_us =
      static_cast<std::int64_t>(TRY(number_param(json, "frozen_us")).value_or(0));
  checkpoint.stopped_us =
      static_cast<std::int64_t>(TRY(number_param(json, "stopped_us")).value_or(0));
  checkpoint.refpoint = TRY(text_param(json, "refpoint"));
  const Json disks = json.value("disks", Json::array());
  if (!disks.is_array() || disks.size() > disks_max)
    return failure(ErrorKind::corrupt, "a checkpoint has no list of disks");
  for (const Json& disk : disks) checkpoint.disks.push_back(TRY(decode_machine_disk(disk)));
  return checkpoint;
}

Json encode(const MachineRefpoint& refpoint) {
  Json parts = Json::array();
  for (const MachineRefpointPart& part : refpoint.parts) {
    parts.push_back({{"disk", part.disk},
                     {"volume", part.volume},
                     {"epoch", part.epoch},
                     {"nonce", part.nonce.to_string()}});
  }
  return {{"format", refpoint_format},
          {"version", version},
          {"name", refpoint.name},
          {"created_at", refpoint.created_at},
          {"consistency", to_string(refpoint.consistency)},
          {"parts", std::move(parts)},
          {"deleting", refpoint.deleting}};
}

Result<MachineRefpoint> decode_refpoint(const Json& json) {
  MachineRefpoint refpoint;
  refpoint.name = TRY(required_text_param(json, "name"));
  refpoint.created_at = TRY(text_param(json, "created_at"));
  const std::string consistency = TRY(required_text_param(json, "consistency"));
  refpoint.consistency = TRY(consistency_from_string(consistency));
  refpoint.deleting = TRY(flag_param(json, "deleting"));
  const Json parts = json.value("parts", Json::array());
  if (!parts.is_array() || parts.size() > disks_max)
    return failure(ErrorKind::corrupt, "a reference point has no list of disks");
  for (const Json& each : parts) {
    MachineRefpointPart part;
    part.disk = TRY(required_text_param(each, "disk"));
    part.volume = TRY(required_text_param(each, "volume"));
    part.epoch = TRY(required_number_param(each, "epoch"));
    part.nonce = TRY(id_param(each, "nonce")).value_or(Id128{});
    refpoint.parts.push_back(std::move(part));
  }
  return refpoint;
}

Result<void> write_record(const std::string& path, const Json& json) {
  return write_small_file(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
}

std::string read_name(const std::string& path) {
  std::string name = read_small_file(path).value_or(std::string());
  while (name.ends_with('\n')) name.pop_back();
  return name;
}

/// "" takes it away.
Result<void> write_name(const std::string& path, const std::string& name) {
  if (!name.empty()) return write_small_file(path, name + '\n');
  ::unlink(path.c_str());
  return sync_directory(path.substr(0, path.rfind('/')));
}

}  // namespace

MachinePoints::MachinePoints(StateLayout state, std::string machine)
    : path_(state.machine(machine)) {}

std::string MachinePoints::checkpoint_directory(const std::string& name) const {
  return fmt::format("{}/checkpoints/{}", path_, name);
}

Result<std::vector<MachineCheckpoint>> MachinePoints::checkpoints() const {
  std::vector<MachineCheckpoint> all;
  for (const std::string& name : names_in(path_ + "/checkpoints")) {
    auto found = checkpoint(name);
    if (found) all.push_back(std::move(*found));
    if (!found && found.error().kind() != ErrorKind::not_found)
      return failure(std::move(found).error());
  }
  std::ranges::sort(
      all, {}, [](const MachineCheckpoint& each) { return std::pair(each.created_at, each.name); });
  return all;
}

Result<MachineCheckpoint> MachinePoints::checkpoint(const std::string& name) const {
  TRY(check_point_name("checkpoint", name));
  auto json = read_record(checkpoint_directory(name) + record_name, checkpoint_format);
  if (json) return decode_checkpoint(*json);
  if (json.error().kind() != ErrorKind::not_found) return failure(std::move(json).error());
  return failure(ErrorKind::not_found, fmt::format("the machine has no checkpoint '{}'", name));
}

Result<void> MachinePoints::save(const MachineCheckpoint& checkpoint) const {
  const std::string directory = checkpoint_directory(checkpoint.name);
  TRY(make_directories(directory));
  return write_record(directory + record_name, encode(checkpoint));
}

Result<void> MachinePoints::remove_checkpoint(const std::string& name) const {
  const auto gone = checkpoint(name);
  const std::string parent = gone ? gone->parent : std::string();
  for (MachineCheckpoint& child : TRY(checkpoints())) {
    if (child.parent != name) continue;
    child.parent = parent;
    TRY(save(child));
    fault_point("deleting.child");
  }
  if (current() == name) TRY(set_current(parent));
  fault_point("deleting.out-of-tree");
  const std::string directory = checkpoint_directory(name);
  ::unlink((directory + record_name).c_str());
  fault_point("deleting.record-gone");
  TRY(remove_tree(directory));
  return sync_directory(path_ + "/checkpoints");
}

Result<void> MachinePoints::clear_leftovers() const {
  for (const std::string& name : names_in(path_ + "/checkpoints")) {
    const std::string directory = checkpoint_directory(name);
    if (!path_exists(directory + record_name)) TRY(remove_tree(directory));
  }
  return {};
}

Result<std::vector<MachineRefpoint>> MachinePoints::refpoints() const {
  std::vector<MachineRefpoint> all;
  constexpr std::string_view ending = ".json";
  for (const std::string& file : names_in(path_ + "/refpoints")) {
    if (file.ends_with(ending))
      all.push_back(TRY(refpoint(file.substr(0, file.size() - ending.size()))));
  }
  std::ranges::sort(
      all, {}, [](const MachineRefpoint& each) { return std::pair(each.created_at, each.name); });
  return all;
}

Result<MachineRefpoint> MachinePoints::refpoint(const std::string& name) const {
  TRY(check_point_name("reference point", name));
  auto json = read_record(fmt::format("{}/refpoints/{}.json", path_, name), refpoint_format);
  if (json) return decode_refpoint(*json);
  if (json.error().kind() != ErrorKind::not_found) return failure(std::move(json).error());
  return failure(ErrorKind::not_found,
                 fmt::format("the machine has no reference point '{}'", name));
}

Result<void> MachinePoints::save(const MachineRefpoint& refpoint) const {
  TRY(make_directories(path_ + "/refpoints"));
  return write_record(fmt::format("{}/refpoints/{}.json", path_, refpoint.name), encode(refpoint));
}

Result<void> MachinePoints::remove_refpoint(const std::string& name) const {
  TRY(refpoint(name));
  ::unlink(fmt::format("{}/refpoints/{}.json", path_, name).c_str());
  return sync_directory(path_ + "/refpoints");
}

std::string MachinePoints::current() const { return read_name(path_ + "/current"); }
Result<void> MachinePoints::set_current(const std::string& checkpoint) const {
  return write_name(path_ + "/current", checkpoint);
}
std::string MachinePoints::reverting() const { return read_name(path_ + "/reverting"); }
Result<void> MachinePoints::set_reverting(const std::string& checkpoint) const {
  return write_name(path_ + "/reverting", checkpoint);
}

}  // namespace berth::machine
