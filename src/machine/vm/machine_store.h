// The machines of one state directory, from outside: made, listed, changed, removed. What a running
// one does is its keeper's matter.
//
// In STATE_DIR/machines:
//
//   NAME/                        the machine, there as a whole or not at all
//   NAME/machine.json            what it is: identity, specification, disks (MachineRecord)
//   NAME/state.json              what it is meant to be doing, and how it last ended (MachineState)
//   NAME/disks/DISK/             volumes of its own; STATE_DIR/volumes/NAME.DISK is a link to each
//   NAME/boot/{kernel,initrd}    copies of what it boots from, where it boots directly
//   NAME/checkpoints/, refpoints/    see machine_points.h
//
// So one directory is the whole machine, and can be copied as one. Blocking. Several processes may
// work on one state directory at once. What was cut short leaves a directory whose name begins with
// a dot, which the next creation clears away.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "machine/layout.h"
#include "machine/vm/qemu_command.h"
#include "machine/vm/specification.h"

namespace berth::machine {

constexpr std::size_t machine_name_length_max = 40;  // NAME.DISK has to be a volume's name

/// A disk of a machine, as it is kept; where it is served is decided at each start.
struct MachineDisk {
  std::string node;    // as of AttachedDisk
  std::string volume;  // name of the volume
  bool own = false;    // lies in the machine's directory, and goes with it
  bool read_only = false;
  AttachedDisk::Kind kind = AttachedDisk::Kind::disk;
  std::uint8_t slot = 0;
  friend bool operator==(const MachineDisk&, const MachineDisk&) = default;
};

struct MachineRecord {
  Id128 id;
  std::uint32_t uid = 0;  // that its QEMU runs as where the keeper is root
  MachineSpecification specification;
  std::vector<MachineDisk> disks;
  std::string created_at;  // RFC 3339
};

struct MachineState {
  bool running = false;    // is meant to be
  bool suspended = false;  // is meant to stand still
  std::string last_end;    // how it ended the last time, for a person; "" for never
  std::string last_end_at;
  bool crashed = false;  // that end was none that anybody wanted
  bool clean = false;    // its guest had shut down
};

/// "web.root" for the disk "root" of the machine "web".
std::string own_volume_name(std::string_view machine, std::string_view disk);

class MachineStore {
 public:
  explicit MachineStore(std::string state_dir);

  /// A directory that is not a machine yet, locked for as long as the claim lives; goes with it
  /// unless it is published. already_exists; in_use while somebody else makes that machine.
  class Claim {
   public:
    Claim(Claim&& other) noexcept = default;
    ~Claim();
    const std::string& path() const { return path_; }
    /// Before volumes of these names are made for it: so that they go too if it comes to nothing.
    Result<void> plan(const std::vector<std::string>& volumes);
    /// Durable: the machine is there, with a uid that no other has. Its own disks, already volumes
    /// of their final names, move in.
    Result<MachineRecord> publish(MachineRecord record);

   private:
    friend class MachineStore;
    Claim(StateLayout state, std::string name, std::string path, Fd lock);
    StateLayout state_;
    std::string name_;
    std::string path_;
    Fd lock_;
  };
  Result<Claim> claim(const std::string& name) const;

  /// By name. Directories that are no machine are left out.
  Result<std::vector<MachineRecord>> list() const;
  Result<MachineRecord> record(const std::string& name) const;  // not_found
  Result<void> save(const MachineRecord& record) const;
  Result<MachineState> state(const std::string& name) const;
  Result<void> save_state(const std::string& name, const MachineState& state) const;

  /// Puts back links to own disks that are missing, and removes those that lead nowhere.
  Result<void> mend_links() const;
  /// With its own volumes, which nobody has open.
  Result<void> remove(const std::string& name) const;

 private:
  StateLayout state_;
};

Json encode(const MachineDisk& disk);
Result<MachineDisk> decode_machine_disk(const Json& json);
Json encode(const MachineRecord& record);
Result<MachineRecord> decode_machine_record(const Json& json);

Json encode(const AttachedDisk& disk);
Result<AttachedDisk> decode_attached_disk(const Json& json);

}  // namespace berth::machine
