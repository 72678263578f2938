// The daemon's memory: jobs that ended, and what was decided about cuts over several volumes. A
// SQLite database in the state directory; every change is durable when its call returns
// (synchronous=FULL).
//
// Not what exists: volumes are found in their directories, checkpoints and reference points in
// their maps.
//
// Calls block and may come from any thread. A file that is no catalogue, or a newer one, is
// `corrupt` or `unsupported` when it is opened.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace berth::control {

/// How far a cut over several volumes has come (DESIGN §5, rule 6). A group without a record was
/// never committed.
enum class GroupState : std::uint8_t {
  prepared,   // gates may be closed, epochs advanced; nothing is decided: after a crash, aborted
  committed,  // it exists, in every volume
  aborted     // it does not, in any
};

struct GroupRecord {
  std::string id;
  GroupState state = GroupState::prepared;
  std::vector<std::string> unsettled;  // volumes that may not know the decision yet
};

/// A job as it is kept: `document` is the API's JSON.
struct JobRecord {
  std::string id;
  std::string state;
  std::string document;
};

class Catalogue {
 public:
  static Result<std::unique_ptr<Catalogue>> open(const std::string& path);
  ~Catalogue();
  Catalogue(const Catalogue&) = delete;
  Catalogue& operator=(const Catalogue&) = delete;

  // --- Groups.
  Result<void> add_group(const std::string& id, const std::vector<std::string>& volumes);
  /// `committed` or `aborted`; a decision is never changed (`precondition`).
  Result<void> decide_group(const std::string& id, GroupState decision);
  Result<void> mark_settled(const std::string& id, const std::string& volume);
  /// What was decided about it: `aborted` for one that nobody knows.
  Result<GroupState> decision_of(const std::string& id);
  /// Those that some volume may not know of yet, the oldest first.
  Result<std::vector<GroupRecord>> unsettled_groups();

  // --- Jobs.
  /// Adds or replaces; forgets the oldest beyond a limit.
  Result<void> save_job(const JobRecord& job);
  /// The youngest first.
  Result<std::vector<JobRecord>> jobs(std::size_t count_max);

 private:
  struct Impl;
  explicit Catalogue(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace berth::control
