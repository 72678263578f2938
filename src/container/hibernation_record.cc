#include "container/hibernation_record.h"

#include <cerrno>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "container/record_members.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"
#include "machine/vm/device_state.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

constexpr const char* record_format = "berth-hibernation";
constexpr unsigned record_version = 1;
constexpr const char* devices_name = "hibernated-devices";

/// No way out of the container's directory.
Result<void> check_file_name(std::string_view member, std::string_view name) {
  if (!name.empty() && !name.contains('/') && name != "." && name != "..") return {};
  return wrong(member, "the name of a file");
}

Result<HibernationRecord> decode_record(const Json& json) {
  Members members(json, "");
  TRY(members.check_object());
  HibernationRecord record;
  TRY(check_format(members, record_format, record_version));
  TRY(members.take("image", record.image));
  TRY(members.take("template", record.template_));
  TRY(members.take("qemu", record.qemu));
  TRY(members.take("accelerator", record.accelerator));
  TRY(members.take("memory", record.memory));
  TRY(members.take("pages", record.pages));
  TRY(check_file_name("pages", record.pages));
  TRY(members.take("devices", record.devices));
  TRY(check_file_name("devices", record.devices));
  TRY(members.take("device_checksum", record.device_checksum));
  TRY(members.take("started_at", record.started_at));
  TRY(members.take("log_begins_at", record.log_begins_at));
  TRY(members.take("log_output", record.log_positions[0]));
  TRY(members.take("log_errors", record.log_positions[1]));
  record.ports = TRY(decode_ports(json.value("ports", Json::array())));
  record.pause = TRY(machine::decode_pause_record(json.value("pause", Json::object())));
  return record;
}

}  // namespace

std::string hibernation_file(std::string_view directory) {
  return fmt::format("{}/hibernation.json", directory);
}

Json encode(const HibernationRecord& record) {
  return {{"format", record_format},
          {"version", record_version},
          {"image", record.image},
          {"template", record.template_},
          {"qemu", record.qemu},
          {"accelerator", record.accelerator},
          {"memory", record.memory},
          {"pages", record.pages},
          {"devices", record.devices},
          {"device_checksum", record.device_checksum},
          {"started_at", record.started_at},
          {"log_begins_at", record.log_begins_at},
          {"log_output", record.log_positions[0]},
          {"log_errors", record.log_positions[1]},
          {"ports", encode_ports(record.ports)},
          {"pause", encode(record.pause)}};
}

Result<HibernationRecord> decode_hibernation_record(std::string_view text) {
  return as_document(decode_record(TRY(parse_document(text))));
}

bool is_hibernated(std::string_view directory) {
  return machine::path_exists(hibernation_file(directory));
}

Result<HibernationRecord> read_hibernation(const std::string& directory) {
  const std::string path = hibernation_file(directory);
  auto record = decode_hibernation_record(TRY(machine::read_small_file(path)));
  if (!record) {
    return failure(
        std::move(record).error().with_context(fmt::format("'{}' cannot be read", path)));
  }
  return record;
}

Result<void> write_hibernation(const std::string& directory, HibernationRecord record,
                               std::string_view devices) {
  record.devices = devices_name;
  record.device_checksum = checksum64(as_bytes(devices));
  const std::string path = fmt::format("{}/{}", directory, devices_name);
  auto written = machine::write_small_file(path, devices);
  if (written)
    written = machine::write_small_file(hibernation_file(directory), encode(record).dump(2) + '\n');
  if (!written) ::unlink(path.c_str());
  return written;
}

Result<std::string> saved_devices(const std::string& directory, const HibernationRecord& record) {
  std::string path = fmt::format("{}/{}", directory, record.devices);
  const std::string devices = TRY(machine::read_device_state(path));
  if (checksum64(as_bytes(devices)) == record.device_checksum) return path;
  return failure(ErrorKind::corrupt, fmt::format("'{}' is not what was written to it", path));
}

Result<void> end_hibernation(const std::string& directory) {
  const std::string path = hibernation_file(directory);
  if (::unlink(path.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot remove '{}'", path));
  return machine::sync_directory(directory);
}

void remove_saved_devices(const std::string& directory) {
  ::unlink(fmt::format("{}/{}", directory, devices_name).c_str());
}

}  // namespace berth::container
