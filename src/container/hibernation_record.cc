#include "container/hibernation_record.h"

#include <utility>

#include <fmt/format.h>

#include "container/record_members.h"

namespace berth::container {
namespace {

constexpr const char* record_format = "berth-hibernation";
constexpr unsigned record_version = 1;

Result<HibernationRecord> decode_record(const Json& json) {
  Members members(json, "");
  TRY(members.check_object());
  HibernationRecord record;
  TRY(check_format(members, record_format, record_version));
  TRY(members.take("image", record.image));
  TRY(members.take("template", record.template_));
  TRY(members.take("started_at", record.started_at));
  TRY(members.take("log_begins_at", record.log_begins_at));
  TRY(members.take("log_output", record.log_positions[0]));
  TRY(members.take("log_errors", record.log_positions[1]));
  record.ports = TRY(decode_ports(json.value("ports", Json::array())));
  record.saved = TRY(machine::decode_saved_guest_state(json));
  return record;
}

}  // namespace

Json encode(const HibernationRecord& record) {
  Json json = encode(record.saved);
  json.update({{"format", record_format},
               {"version", record_version},
               {"image", record.image},
               {"template", record.template_},
               {"started_at", record.started_at},
               {"log_begins_at", record.log_begins_at},
               {"log_output", record.log_positions[0]},
               {"log_errors", record.log_positions[1]},
               {"ports", encode_ports(record.ports)}});
  return json;
}

Result<HibernationRecord> decode_hibernation_record(std::string_view text) {
  return as_document(decode_record(TRY(parse_document(text))));
}

Result<HibernationRecord> read_hibernation(const std::string& directory) {
  auto record = decode_hibernation_record(TRY(machine::read_hibernation_file(directory)));
  if (!record) {
    return failure(std::move(record).error().with_context(
        fmt::format("'{}' cannot be read", machine::hibernation_file(directory))));
  }
  return record;
}

Result<void> write_hibernation(const std::string& directory, HibernationRecord record,
                               std::string_view devices) {
  TRY(machine::save_devices(directory, devices, record.saved));
  return machine::write_hibernation_file(directory, encode(record));
}

}  // namespace berth::container
