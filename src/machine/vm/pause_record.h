// How deep a container is paused, and what that has brought: kept in
// RUN_DIR/containers/NAME/pause.json while it is paused, for a next keeper, and shown by
// `container.info`. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "machine/control_protocol.h"
#include "machine/vm/page_files.h"

namespace berth::machine {

/// The further down the longer it takes to come back, and the less it takes meanwhile.
enum class PauseLevel : std::uint8_t {
  none,        // it runs
  frozen,      // virtual CPUs stand
  trimmed,     // and its private memory is swapped out
  parked,      // or in page files
  hibernated,  // QEMU is gone: nothing but files is left
};

std::string_view to_string(PauseLevel level);
/// `invalid_argument` for what is none that a container can be paused to.
Result<PauseLevel> parse_pause_level(std::string_view word);

struct PauseRecord {
  PauseLevel level = PauseLevel::none;
  std::string since;          // RFC 3339
  std::uint64_t took_ms = 0;  // to get to this level
  std::optional<PageFiles::Report> memory;
  std::uint64_t page_file_bytes = 0;  // on the disk
};

Json encode(const PauseRecord& record);
Result<PauseRecord> decode_pause_record(const Json& json);

}  // namespace berth::machine
