// What a damaged journal still says (for check_volume). Pure: areas come as bytes, any bytes.
//
// The journal's two areas hold a generation each: a state, then events upon it. The next generation
// begins, in the other area, with the state that the last one ended with; so the two vouch for each
// other.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "disk/journal.h"

namespace berth::disk {

/// One area, read as far as it goes, and what lies beyond.
struct AreaSurvey {
  bool blank = true;  // nothing but zeros
  std::optional<VolumeState>
      state;                     // of the records in a row; nothing if the first is no whole state
  std::uint64_t generation = 0;  // theirs; without a state, the newest one of the strays
  std::uint64_t records = 0;     // events in `state`
  std::uint64_t end = 0;         // bytes that they take, from the area's beginning
  bool torn_tail = false;        // the bytes at the end are neither zero nor an older generation's
  std::string trouble;           // why the row ends before a stray; "" where it ends by itself

  struct Stray {
    std::uint64_t offset = 0;  // in the area, bytes
    std::uint64_t length = 0;  // with padding
    std::uint64_t sequence = 0;
    JournalEvent event;
  };
  std::vector<Stray>
      strays;  // whole records of the generation that do not follow the row, by offset
};

/// `area` begins at the area's offset and ends anywhere in it; what is not there counts as zeros.
/// `unsupported` for a record of a newer program.
Result<AreaSurvey> survey_area(const Id128& volume, Bytes area);

/// What both areas together say.
struct JournalVerdict {
  bool readable = false;         // false: no area has a state
  unsigned area = 0;             // where the state comes from (0: A, 1: B)
  std::uint64_t generation = 0;  // the newest seen
  VolumeState state;

  // The current area's first record is damaged, and the other one's end is exactly it.
  std::optional<std::vector<std::byte>> rebuilt_head;
  // Of the two areas: records in it make the volume refuse to open. In the one that is not `area`,
  // nothing depends on it.
  std::array<bool, 2> refuses{};

  // Records are missing for good. What they may have changed has been given up in `state`:
  bool incomplete = false;
  std::string missing;  // which, in words
  std::vector<std::string> lost_checkpoints;
  std::vector<std::string> void_refpoints;
  std::vector<std::string> unused_records;  // whole, but making no sense without the missing ones
};
JournalVerdict judge_journal(const Id128& volume, const std::array<AreaSurvey, 2>& areas);

/// "the cut of epoch 7 (checkpoint 'a')", for people.
std::string describe(const JournalEvent& event);

}  // namespace berth::disk
