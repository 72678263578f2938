// Volume: a virtual disk that knows what changed since when, and holds what checkpoints need.
//
// One volume is one directory (DESIGN §5; docs/formats/) and lives on one loop, in one process: the
// directory's data file is locked while it is open. All calls are made on that loop. Reads and
// writes may overlap in any number. Errors of I/O fail the request that met them; a failed sync
// fails that flush and every later one until the volume is opened again (`io_error`).
//
// Two kinds of death are survived (DESIGN §5). When the process dies, the next open goes on with
// the live map and nothing is lost. When the machine does, the map file and its intents answer, and
// what was hot is reported as changed (`exact: false`).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/file.h"
#include "async/loop.h"
#include "async/memory.h"
#include "async/task.h"
#include "base/ids.h"
#include "disk/types.h"

namespace berth::disk {

/// Opens what a backing names (a file path, "volume:NAME@CHECKPOINT", "nbd://…", an image of
/// another format) as a read-only file. Supplied by whoever wires the process.
using BackingOpener = std::function<Task<Result<std::unique_ptr<File>>>(std::string specification)>;

/// Something that an administrator should hear of: a volatile checkpoint given up, reference points
/// that are void, an inexact recovery.
struct VolumeEvent {
  enum class Kind { recovered_from_power_loss, checkpoint_lost, refpoints_void, io_failed };
  Kind kind;
  std::string message;
};

/// What a volume stands on. Everything outlives the volume.
struct VolumeEnvironment {
  Loop& loop;
  Directory& directory;           // the volume's own
  SharedMemoryStore& live_store;  // for the live map
  Random& random;
  BackingOpener open_backing;                            // may be empty: backings are refused then
  std::function<void(const VolumeEvent&)> report_event;  // may be empty
};

struct CreateOptions {
  std::uint64_t size = 0;  // bytes; 0: the size of the adopted data or backing
  std::uint32_t block_size = block_size_default;  // bytes, a power of two
  std::string backing;  // specification for the BackingOpener; "" for none
  bool adopt = false;   // `data` is there already (a raw image or a link): take it as it is
};

struct OpenOptions {
  bool direct = true;  // O_DIRECT for the data file
  std::size_t hot_regions_max = hot_regions_default;
};

enum class Durability : std::uint8_t {
  durable,   // survives power loss; costs a sync for the first write to a block after the cut
  volatile_  // survives the process, not power loss; given up before a guest's write fails for
             // space
};

struct CutRequest {
  std::string checkpoint;  // a name: make a checkpoint; "" for none
  std::string refpoint;    // a name: make a reference point; "" for none
  Durability durability = Durability::durable;
  Id128 group;  // nil, or: provisional until settle_group (DESIGN §5, rule 6)
};

struct CheckpointInfo {
  std::string name;
  Epoch epoch = 0;  // the last epoch that is part of it
  Durability durability = Durability::durable;
  std::uint64_t size = 0;        // bytes of the volume at the cut
  std::int64_t created_ms = 0;   // Unix time
  std::uint64_t held_bytes = 0;  // space in the hold layers at or after it that only it still needs
  Id128 group;                   // nil if alone
  bool provisional = false;      // its group has not committed
  bool lost = false;             // volatile, and given up for space
};

/// {volume, epoch, nonce}: all that a reference point is. It holds no data.
struct RefpointInfo {
  std::string name;
  Id128 volume;
  Epoch epoch = 0;
  Id128 nonce;
  std::int64_t created_ms = 0;  // Unix time
  bool exact = true;            // false: a power loss since then makes answers over-report
  Id128 group;
  bool provisional = false;
};

struct CutOutcome {
  Epoch epoch = 0;         // the last epoch before the cut
  Duration gate_closed{};  // how long writes waited
  std::optional<CheckpointInfo> checkpoint;
  std::optional<RefpointInfo> refpoint;
};

struct ChangesRequest {
  std::string since;           // a reference point (or a checkpoint), by name
  std::optional<Id128> nonce;  // when given, must be the one of `since`
  std::string until;           // a checkpoint, by name; "" is the live volume, now
  std::uint64_t offset = 0;    // bytes
  std::uint64_t length = UINT64_MAX;
  std::size_t extents_max = 65536;
};

struct ChangesPage {
  std::vector<Extent> extents;    // in order, disjoint, not touching; clipped to the asked range
  bool exact = true;              // false: a power loss lies between; may over-report
  std::uint64_t next_offset = 0;  // ask on from here
  bool complete = true;           // nothing is left after this page
};

/// One run of equal allocation, for base:allocation.
struct AllocationExtent {
  std::uint64_t length = 0;  // bytes
  bool hole = false;
  bool zero = false;
};

struct VolumeInfo {
  Id128 id;
  std::uint64_t size = 0;        // bytes
  std::uint32_t block_size = 0;  // bytes
  std::string backing;           // "" for none
  Epoch epoch = 0;               // the current one
  bool failed = false;           // a sync has failed; open it again
  std::size_t hot_regions = 0;   // what a power loss now would over-report, in regions of 4 MiB
  std::size_t hot_regions_max = 0;
  std::uint64_t held_bytes = 0;  // in all hold layers
  std::uint64_t requests_in_flight = 0;
  std::size_t checkpoints = 0;
  std::size_t refpoints = 0;
};

/// A closed gate, ready to advance: the first phase of a cut over many volumes (rule 6).
struct CutTicket {
  std::uint64_t number = 0;
};

class CheckpointReader;

class Volume {
 public:
  /// Makes a volume in the (empty but for adopted `data`) directory: durable when it returns.
  static Task<Result<void>> create(VolumeEnvironment environment, CreateOptions options);

  /// Opens it, recovering what must be. `in_use` if somebody has it open; `corrupt` with what is
  /// wrong.
  static Task<Result<std::unique_ptr<Volume>>> open(VolumeEnvironment environment,
                                                    OpenOptions options);

  virtual ~Volume() = default;

  /// Waits for what is in flight, makes everything durable, and marks the map clean. Call nothing
  /// after it.
  virtual Task<Result<void>> close() = 0;
  /// Process death, in simulations: drops everything where it stands.
  virtual void abandon() = 0;

  // --- I/O. Any offset and length within the volume; page-aligned buffers make it fast.
  virtual Task<Result<void>> read(std::uint64_t offset, MutableBytes into) = 0;
  virtual Task<Result<void>> write(std::uint64_t offset, Bytes from) = 0;
  virtual Task<Result<void>> flush() = 0;
  /// Content of the range is undefined afterwards: old bytes or zeros. May do nothing.
  virtual Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length) = 0;
  /// `fast_only`: `unsupported` where bytes would have to be written.
  virtual Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, bool fast_only) = 0;
  virtual Task<Result<std::vector<AllocationExtent>>> allocation(std::uint64_t offset,
                                                                 std::uint64_t length,
                                                                 std::size_t extents_max) = 0;

  // --- Cuts.
  /// Both phases at once.
  Task<Result<CutOutcome>> cut(CutRequest request, std::function<void()> writes_go_on = {});
  /// Closes the gate and drains; the gate opens by itself, and the ticket is void, after `lease`.
  virtual Task<Result<CutTicket>> begin_cut(CutRequest request, Duration lease) = 0;
  /// `timed_out` if the lease has ever expired. `writes_go_on`, which may be empty, is called as
  /// soon as the gate has opened: the instant of the cut is over, its record not durable yet.
  virtual Task<Result<CutOutcome>> commit_cut(CutTicket ticket,
                                              std::function<void()> writes_go_on) = 0;
  virtual void abort_cut(CutTicket ticket) = 0;
  /// After a group's decision: its checkpoints and reference points become real, or go.
  virtual Task<Result<void>> settle_group(Id128 group, bool committed) = 0;

  // --- Checkpoints and reference points.
  virtual std::vector<CheckpointInfo> checkpoints() const = 0;
  virtual Result<std::unique_ptr<CheckpointReader>> read_checkpoint(const std::string& name) = 0;
  /// Gives the held data back; in_use while somebody reads it.
  virtual Task<Result<void>> release_checkpoint(std::string name) = 0;
  /// Flips one record; the held data goes in the background. The name stays, or becomes `refpoint`.
  virtual Task<Result<RefpointInfo>> convert_checkpoint(std::string name, std::string refpoint) = 0;
  /// Writes the checkpoint's content back, in a new epoch; resumed by open() if it is cut short.
  virtual Task<Result<void>> revert(std::string checkpoint) = 0;
  virtual std::vector<RefpointInfo> refpoints() const = 0;
  virtual Task<Result<void>> delete_refpoint(std::string name) = 0;
  /// full_backup_required, with the reason, wherever the answer could not be vouched for.
  virtual Task<Result<ChangesPage>> changes(ChangesRequest request) = 0;

  // --- The rest.
  virtual Task<Result<void>> resize(std::uint64_t size) = 0;
  /// Copies up to `bytes_max` of the backing's absent blocks in; the bytes copied, 0 when all is
  /// here.
  virtual Task<Result<std::uint64_t>> populate(std::uint64_t bytes_max) = 0;
  virtual VolumeInfo info() const = 0;
};

/// A checkpoint's bytes, for as long as this lives. On the volume's loop, and not longer than it.
class CheckpointReader {
 public:
  virtual ~CheckpointReader() = default;
  virtual const CheckpointInfo& info() const = 0;
  virtual Task<Result<void>> read(std::uint64_t offset, MutableBytes into) = 0;
  virtual Task<Result<std::vector<AllocationExtent>>> allocation(std::uint64_t offset,
                                                                 std::uint64_t length,
                                                                 std::size_t extents_max) = 0;
};

}  // namespace berth::disk
