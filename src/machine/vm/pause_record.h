// How deep a guest is paused, a machine or a container, and what that has brought: kept in
// pause.json of its run directory meanwhile, for a next keeper, and shown by `machine.info` and
// `container.info`.
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
/// `invalid_argument` for what is none that a guest can be paused to.
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

/// Memory goes where `level` says, trimmed or parked; `since` and `took_ms` are left to the caller.
/// As PageFiles: blocking.
Result<PauseRecord> move_memory(const PageFiles& files, const memory::GuestProcess& process,
                                PauseLevel level);

// --- pause.json, of a guest that stands still. Blocking.

/// What cannot be written is logged: it is for people alone, but for the level.
void save_pause_record(const std::string& path, const PauseRecord& record);
/// One that was frozen where nothing else is known.
PauseRecord load_pause_record(const std::string& path);

}  // namespace berth::machine
