// A machine that is hibernated: what of it decides whether it can go on from its files
// (hibernation.h), in STATE_DIR/machines/NAME/hibernation.json. Its disks hold what they did when
// it was saved: nobody may write to them meanwhile.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/vm/hibernation.h"
#include "machine/vm/machine_store.h"

namespace berth::machine {

struct MachineHibernation {
  SavedGuestState saved;
  std::string machine_type;
  std::string cpu_model;
  unsigned cpus = 0;
  std::vector<AttachedDisk> disks;  // as they were served then
};

Json encode(const MachineHibernation& record);
/// `corrupt`, or `unsupported` for another version.
Result<MachineHibernation> decode_machine_hibernation(std::string_view text);
/// `precondition` where a machine of this specification with these disks is not the one that was
/// saved. Its memory and CPUs are those of the record, whatever the specification says by now.
Result<void> check_fits(const MachineHibernation& record, const MachineSpecification& specification,
                        const std::vector<AttachedDisk>& disks);

/// Of a machine's directory; `not_found` for one that is not hibernated. Blocking.
Result<MachineHibernation> read_machine_hibernation(const std::string& directory);

}  // namespace berth::machine
