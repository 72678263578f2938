// What is inside the control socket's requests and results (docs/formats/keeper-control.md), as the
// types of the volume engine. Pure. A parameter that does not fit is `invalid_argument`, with its
// name.
//
// Members that are absent or null leave the value of a default-made structure. A member of another
// type, a negative or fractional number, a text of more than 4096 bytes or with a zero byte in it
// does not fit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "disk/volume.h"
#include "machine/control_protocol.h"

namespace berth::machine {

constexpr std::size_t control_text_max = 4096;          // bytes
constexpr std::size_t control_extents_max = 16384;      // of one answer
constexpr std::size_t control_list_entries_max = 1024;  // of one answer

// --- One member.

Result<std::string> text_param(const Json& params, const char* name);
Result<std::string> required_text_param(const Json& params, const char* name);
Result<std::optional<std::uint64_t>> number_param(const Json& params, const char* name);
Result<std::uint64_t> required_number_param(const Json& params, const char* name);
Result<bool> flag_param(const Json& params, const char* name);
Result<std::optional<Id128>> id_param(const Json& params, const char* name);

// --- The parameters of a method.

struct ServeRequest {
  std::string export_name;  // "" for the volume's own
  std::string unix_path;    // either this
  std::string tcp;          // or this: "host:port"
  std::string tls_dir;      // "" for no TLS
  bool insecure = false;
  bool read_only = false;
  std::optional<std::uint32_t> owner;  // uid that the UNIX socket's file is given to
  friend bool operator==(const ServeRequest&, const ServeRequest&) = default;
};

struct CheckpointExportRequest {
  std::string checkpoint;
  std::string to;     // an absolute path
  std::string since;  // a reference point; "" for everything
  std::optional<Id128> nonce;
};

struct CutBeginRequest {
  disk::CutRequest cut;
  Duration lease{};
};

struct GroupSettleRequest {
  Id128 group;
  bool committed = false;
};

Result<disk::CutRequest> decode_checkpoint_create(const Json& params);
Result<disk::CutRequest> decode_refpoint_create(const Json& params);
Result<CutBeginRequest> decode_cut_begin(const Json& params);
Result<GroupSettleRequest> decode_group_settle(const Json& params);
Result<disk::ChangesRequest> decode_changes(const Json& params);
Result<CheckpointExportRequest> decode_checkpoint_export(const Json& params);
Result<ServeRequest> decode_serve(const Json& params);

// --- Results.

Json encode(const ServeRequest& request);
Json encode(const disk::CheckpointInfo& checkpoint);
Json encode(const disk::RefpointInfo& refpoint);
Json encode(const disk::CutOutcome& outcome);
Json encode(const disk::ChangesPage& page);
Json encode(const disk::VolumeInfo& info, std::string_view name);

/// One page of a list, as the member `name`: the entries from number `offset` on.
Json encode_page(const char* name, const std::vector<disk::CheckpointInfo>& entries,
                 std::uint64_t offset);
Json encode_page(const char* name, const std::vector<disk::RefpointInfo>& entries,
                 std::uint64_t offset);

}  // namespace berth::machine
