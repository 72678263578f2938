// The containers of one state directory:
//
//   containers/NAME/container.json   what it is
//   containers/NAME/state.json       what it is meant to be doing, and how it ended
//   containers/NAME/log, log.old     what it has written (docs/formats/containers.md)
//   containers/.making-…, .removing-…  leftovers, unless somebody is at it
//
// Blocking; any thread. Made and removed by the daemon alone; the keeper of a container that runs
// writes its state and log.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "container/container_record.h"

namespace berth::container {

// Host's users that containers run as: QEMUs, and, of containers in the host's kernel, what tells
// their ranges of users apart (process_bundle.h).
constexpr std::uint32_t container_uid_first = 1'900'065'536;
constexpr std::uint32_t container_uid_count = 65'536;

struct ContainerIdentity {
  Id128 id;
  std::uint32_t uid = 0;  // that its QEMU runs as
};

class ContainerStore {
 public:
  explicit ContainerStore(std::string state_dir);

  /// Removes what a dead process has left. Once, first.
  Result<void> open() const;

  /// Of a container that is to be made: an id, and a uid that neither a container nor one of
  /// `taken` has.
  Result<ContainerIdentity> new_identity(const std::set<std::uint32_t>& taken) const;
  /// Durable: gives it its id and uid, unless it has an `identity` already. already_exists.
  Result<ContainerRecord> create(
      ContainerSpecification specification, const std::string& created_at,
      const std::set<std::uint32_t>& taken = {},
      const std::optional<ContainerIdentity>& identity = std::nullopt) const;
  /// By name. Directories whose record cannot be read are left out, with a warning.
  std::vector<ContainerRecord> list() const;
  /// By name, by id, or by at least 4 digits that its id begins with. not_found; invalid_argument
  /// where several begin like that.
  Result<ContainerRecord> find(const std::string& reference) const;
  Result<ContainerRecord> record(const std::string& name) const;  // not_found
  Result<ContainerState> state(const std::string& name) const;
  Result<void> save_state(const std::string& name, const ContainerState& state) const;
  /// With its log.
  Result<void> remove(const std::string& name) const;

  std::string directory(const std::string& name) const;
  std::string log(const std::string& name) const { return directory(name) + "/log"; }

 private:
  std::string state_dir_;
};

}  // namespace berth::container
