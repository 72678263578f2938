#include "machine/control_messages.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include <fmt/format.h>

#include "machine/layout.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t lease_ms_default = 5000;
constexpr std::uint64_t lease_ms_max =
    60'000;  // a guest's disk stands still for no longer than that

std::unexpected<Error> refuse(const char* name, std::string_view expected) {
  return failure(ErrorKind::invalid_argument,
                 fmt::format("the parameter '{}' must be {}", name, expected));
}

/// The member, or null.
const Json& member(const Json& params, const char* name) {
  static const Json absent;
  const auto found = params.find(name);
  return found == params.end() ? absent : *found;
}

Result<disk::Durability> durability_param(const Json& params) {
  const std::string text = TRY(text_param(params, "durability"));
  if (text.empty() || text == "durable") return disk::Durability::durable;
  if (text == "volatile") return disk::Durability::volatile_;
  return refuse("durability", "'durable' or 'volatile'");
}

/// The name of a point that is to be made; "" stays "".
Result<std::string> new_point_param(const Json& params, const char* name, std::string_view what) {
  std::string text = TRY(text_param(params, name));
  if (!text.empty()) TRY(check_point_name(what, text));
  return text;
}

const char* to_text(disk::Durability durability) {
  return durability == disk::Durability::durable ? "durable" : "volatile";
}

std::string time_of(std::int64_t unix_ms) {
  return format_time(std::chrono::system_clock::time_point(std::chrono::milliseconds(unix_ms)));
}

template <typename Entry>
Json page_of(const char* name, const std::vector<Entry>& entries, std::uint64_t offset) {
  const std::size_t first = std::min<std::uint64_t>(offset, entries.size());
  const std::size_t last = std::min(first + control_list_entries_max, entries.size());
  Json list = Json::array();
  for (std::size_t i = first; i < last; ++i) list.push_back(encode(entries[i]));
  return {{name, std::move(list)}, {"complete", last == entries.size()}, {"next_offset", last}};
}

}  // namespace

Result<std::string> text_param(const Json& params, const char* name) {
  const Json& value = member(params, name);
  if (value.is_null()) return std::string();
  if (!value.is_string()) return refuse(name, "a text");
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > control_text_max || text.contains('\0')) {
    return refuse(name, fmt::format("a text of at most {} bytes", control_text_max));
  }
  return text;
}

Result<std::string> required_text_param(const Json& params, const char* name) {
  std::string text = TRY(text_param(params, name));
  if (text.empty()) return refuse(name, "given: a text");
  return text;
}

Result<std::optional<std::uint64_t>> number_param(const Json& params, const char* name) {
  const Json& value = member(params, name);
  if (value.is_null()) return std::nullopt;
  if (!value.is_number_unsigned()) return refuse(name, "a whole number");
  return value.get<std::uint64_t>();
}

Result<std::uint64_t> required_number_param(const Json& params, const char* name) {
  const auto number = TRY(number_param(params, name));
  if (!number) return refuse(name, "given: a whole number");
  return *number;
}

Result<bool> flag_param(const Json& params, const char* name) {
  const Json& value = member(params, name);
  if (value.is_null()) return false;
  if (!value.is_boolean()) return refuse(name, "true or false");
  return value.get<bool>();
}

Result<std::optional<Id128>> id_param(const Json& params, const char* name) {
  const std::string text = TRY(text_param(params, name));
  if (text.empty()) return std::nullopt;
  auto id = Id128::parse(text);
  if (!id) return refuse(name, "an id of 32 hexadecimal digits");
  return *id;
}

Result<disk::CutRequest> decode_checkpoint_create(const Json& params) {
  TRY(required_text_param(params, "name"));
  disk::CutRequest cut;
  cut.checkpoint = TRY(new_point_param(params, "name", "checkpoint"));
  cut.refpoint = TRY(new_point_param(params, "refpoint", "reference point"));
  cut.durability = TRY(durability_param(params));
  return cut;
}

Result<disk::CutRequest> decode_refpoint_create(const Json& params) {
  TRY(required_text_param(params, "name"));
  disk::CutRequest cut;
  cut.refpoint = TRY(new_point_param(params, "name", "reference point"));
  return cut;
}

Result<CutBeginRequest> decode_cut_begin(const Json& params) {
  CutBeginRequest request;
  request.cut.checkpoint = TRY(new_point_param(params, "checkpoint", "checkpoint"));
  request.cut.refpoint = TRY(new_point_param(params, "refpoint", "reference point"));
  request.cut.durability = TRY(durability_param(params));
  request.cut.group = TRY(id_param(params, "group")).value_or(Id128{});
  const std::uint64_t lease_ms = TRY(number_param(params, "lease_ms")).value_or(lease_ms_default);
  if (lease_ms == 0 || lease_ms > lease_ms_max) {
    return refuse("lease_ms", fmt::format("1 to {}", lease_ms_max));
  }
  request.lease = std::chrono::milliseconds(lease_ms);
  return request;
}

Result<GroupSettleRequest> decode_group_settle(const Json& params) {
  const auto group = TRY(id_param(params, "group"));
  if (!group || group->is_nil()) return refuse("group", "given: an id");
  if (!member(params, "committed").is_boolean()) return refuse("committed", "true or false");
  return GroupSettleRequest{.group = *group, .committed = TRY(flag_param(params, "committed"))};
}

Result<disk::ChangesRequest> decode_changes(const Json& params) {
  disk::ChangesRequest request;
  request.since = TRY(required_text_param(params, "since"));
  request.nonce = TRY(id_param(params, "nonce"));
  request.until = TRY(text_param(params, "until"));
  request.offset = TRY(number_param(params, "offset")).value_or(request.offset);
  request.length = TRY(number_param(params, "length")).value_or(request.length);
  const std::uint64_t extents_max =
      TRY(number_param(params, "extents_max")).value_or(control_extents_max);
  if (extents_max == 0) return refuse("extents_max", "at least 1");
  request.extents_max = std::min<std::uint64_t>(extents_max, control_extents_max);
  return request;
}

Result<CheckpointExportRequest> decode_checkpoint_export(const Json& params) {
  CheckpointExportRequest request;
  request.checkpoint = TRY(required_text_param(params, "name"));
  request.to = TRY(required_text_param(params, "to"));
  request.since = TRY(text_param(params, "since"));
  request.nonce = TRY(id_param(params, "nonce"));
  if (request.to.front() != '/' || request.to.back() == '/')
    return refuse("to", "the absolute path of a file");
  return request;
}

Result<ServeRequest> decode_serve(const Json& params) {
  ServeRequest request;
  request.export_name = TRY(text_param(params, "export"));
  request.unix_path = TRY(text_param(params, "unix"));
  request.tcp = TRY(text_param(params, "tcp"));
  request.tls_dir = TRY(text_param(params, "tls_dir"));
  request.insecure = TRY(flag_param(params, "insecure"));
  request.read_only = TRY(flag_param(params, "read_only"));
  if (const auto owner = TRY(number_param(params, "owner"))) {
    if (*owner >= UINT32_MAX) return failure(ErrorKind::invalid_argument, "owner: expected a uid");
    request.owner = static_cast<std::uint32_t>(*owner);
  }
  if (request.unix_path.empty() == request.tcp.empty()) {
    return failure(ErrorKind::invalid_argument,
                   "give one of 'unix' (a path) and 'tcp' (host:port)");
  }
  if (!request.unix_path.empty()) TRY(check_socket_path(request.unix_path));
  return request;
}

Json encode(const ServeRequest& request) {
  Json json = {{"export", request.export_name},
               {"insecure", request.insecure},
               {"read_only", request.read_only}};
  if (!request.unix_path.empty()) json["unix"] = request.unix_path;
  if (!request.tcp.empty()) json["tcp"] = request.tcp;
  if (!request.tls_dir.empty()) json["tls_dir"] = request.tls_dir;
  if (request.owner) json["owner"] = *request.owner;
  return json;
}

Json encode(const disk::CheckpointInfo& checkpoint) {
  return {{"name", checkpoint.name},
          {"epoch", checkpoint.epoch},
          {"durability", to_text(checkpoint.durability)},
          {"size", checkpoint.size},
          {"created_at", time_of(checkpoint.created_ms)},
          {"held_bytes", checkpoint.held_bytes},
          {"group", checkpoint.group.to_string()},
          {"provisional", checkpoint.provisional},
          {"lost", checkpoint.lost}};
}

Json encode(const disk::RefpointInfo& refpoint) {
  return {{"name", refpoint.name},
          {"volume", refpoint.volume.to_string()},
          {"epoch", refpoint.epoch},
          {"nonce", refpoint.nonce.to_string()},
          {"created_at", time_of(refpoint.created_ms)},
          {"exact", refpoint.exact},
          {"group", refpoint.group.to_string()},
          {"provisional", refpoint.provisional}};
}

Json encode(const disk::CutOutcome& outcome) {
  return {{"epoch", outcome.epoch},
          {"gate_closed_us", to_microseconds(outcome.gate_closed)},
          {"checkpoint", outcome.checkpoint ? encode(*outcome.checkpoint) : Json()},
          {"refpoint", outcome.refpoint ? encode(*outcome.refpoint) : Json()}};
}

Json encode(const disk::ChangesPage& page) {
  Json extents = Json::array();
  for (const disk::Extent& extent : page.extents) {
    extents.push_back(Json::array({extent.offset, extent.length}));
  }
  return {{"extents", std::move(extents)},
          {"exact", page.exact},
          {"next_offset", page.next_offset},
          {"complete", page.complete}};
}

Json encode(const disk::VolumeInfo& info, std::string_view name) {
  return {{"name", name},
          {"id", info.id.to_string()},
          {"size", info.size},
          {"block_size", info.block_size},
          {"backing", info.backing},
          {"epoch", info.epoch},
          {"read_only", false},  // no keeper opens a volume that way yet
          {"failed", info.failed},
          {"hot_regions", info.hot_regions},
          {"hot_regions_max", info.hot_regions_max},
          {"held_bytes", info.held_bytes},
          {"requests_in_flight", info.requests_in_flight},
          {"checkpoints", info.checkpoints},
          {"refpoints", info.refpoints}};
}

Json encode_page(const char* name, const std::vector<disk::CheckpointInfo>& entries,
                 std::uint64_t offset) {
  return page_of(name, entries, offset);
}

Json encode_page(const char* name, const std::vector<disk::RefpointInfo>& entries,
                 std::uint64_t offset) {
  return page_of(name, entries, offset);
}

}  // namespace berth::machine
