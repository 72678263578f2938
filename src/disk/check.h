// Offline verification of a volume: every structure of its files is read, held against its
// checksum, against the others, and against what the rules of DESIGN §5 promise. With `repair`,
// what can be brought back is.
//
// A repair is never silent: each is a finding. It overwrites nothing that is whole, and where
// something is gone for good it gives up the answers that depended on it instead of guessing:
// blocks are reported as changed, checkpoints are marked lost, reference points are no longer
// vouched for. docs/formats/block-map.md, "Check and repair", says what is done about which damage.
//
// On the loop of `directory`. Nobody else can have the volume open meanwhile (`in_use`). What is
// wrong with the volume is in the report, not an error; errors are: `not_found` (no volume here),
// `unsupported` (made by another version of this program; nothing is touched), and what a write of
// the repair met.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "async/file.h"
#include "async/loop.h"
#include "async/memory.h"
#include "async/task.h"
#include "base/ids.h"

namespace berth::disk {

enum class Severity : std::uint8_t {
  note,     // as it should be after what has happened; worth knowing
  warning,  // wrong, and nothing depends on it, or it cannot be told apart from damage
  error,    // something is lost, or the volume does not open
};
/// "note", "warning", "error".
std::string_view to_string(Severity severity);

struct CheckFinding {
  Severity severity = Severity::note;
  std::string where;        // "map, page 17"; "holds/0000000000000003, slot 5"; "data"
  std::string what;         // and what it means, for a person
  bool repairable = false;  // `repair` has a remedy
  bool repaired = false;    // and has applied it
};

constexpr std::size_t check_findings_max = 1000;  // kept; the rest is counted

struct CheckReport {
  Id128 volume;  // nil where it could not be learned
  std::vector<CheckFinding> findings;
  std::uint64_t findings_left_out = 0;

  // Of all findings.
  std::uint64_t notes = 0;
  std::uint64_t warnings = 0;
  std::uint64_t errors = 0;
  std::uint64_t errors_repaired = 0;

  // What has been looked at.
  std::uint64_t journal_records = 0;
  std::uint64_t pages = 0;  // of the map, that were ever written
  std::uint64_t hold_layers = 0;
  std::uint64_t hold_entries = 0;
  std::uint64_t hold_bytes = 0;

  /// No error is left. A volume with one may still open.
  bool sound() const { return errors == errors_repaired; }
};

struct CheckOptions {
  bool repair = false;
  // Where a keeper that has died left its live map. Null: it is not looked for, and the map of a
  // volume that was not closed is not repaired, because what is there may belong to a live map that
  // is newer.
  SharedMemoryStore* live_store = nullptr;
};

Task<Result<CheckReport>> check_volume(Loop& loop, Directory& volume_directory,
                                       CheckOptions options);

/// A line for each finding, and a last one with the sums.
std::string describe(const CheckReport& report);

}  // namespace berth::disk
