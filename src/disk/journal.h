// The journal of a volume: every cut, release, conversion, resize, open and close, one checksummed
// record each, and the state that they add up to (docs/formats/block-map.md, "Journal").
//
// An operation is one record, so it has happened or it has not. `VolumeState::apply` is the only
// place where the meaning of a record is defined: the running engine and the next open both go
// through it. Pure: no I/O (map_file.h does that). Decoders take any bytes.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "async/file.h"
#include "base/bytes.h"
#include "base/result.h"
#include "disk/types.h"
#include "disk/volume.h"

namespace berth::disk {

using LayerId = std::uint64_t;

struct Checkpoint {
  std::string name;
  Epoch epoch = 0;
  Id128 nonce;
  Durability durability = Durability::durable;
  std::uint64_t size = 0;  // bytes of the volume at the cut
  std::int64_t created_ms = 0;
  Id128 group;
  bool provisional = false;
  bool lost = false;
};

struct Refpoint {
  std::string name;
  Epoch epoch = 0;
  Id128 nonce;
  std::uint64_t size = 0;
  std::int64_t created_ms = 0;
  Id128 group;
  bool provisional = false;
};

struct Layer {
  LayerId id = 0;
  Epoch epoch =
      0;  // of the cut that made it: it holds blocks as they were at the end of this epoch
};

// --- Events. Names of checkpoints and reference points are unique among themselves.
struct CutEvent {
  Epoch epoch = 0;
  Id128 nonce;
  std::string checkpoint;  // "" for none
  std::string refpoint;    // "" for none
  Durability durability = Durability::durable;
  LayerId layer = 0;  // 0 for none
  std::int64_t created_ms = 0;
  Id128 group;
};
struct ReleaseEvent {
  std::string checkpoint;
};
struct ConvertEvent {
  std::string checkpoint;
  std::string refpoint;
};
struct DeleteRefpointEvent {
  std::string refpoint;
};
struct SettleEvent {
  Id128 group;
  bool committed = false;
};
enum class OpenKind : std::uint8_t { clean, power_loss, foreign_data };
/// Why changes since old points are not known any more (rule 9).
enum class VoidReason : std::uint8_t {
  none,
  data_file_changed,  // while the volume was closed
  pages_damaged,      // versions of map pages that were there at the close are not
  intents_missing,    // after a power loss, the newest records of the ring are not there
  records_missing,    // of the journal
  copied,             // this volume is a copy: the points are the original's
};
/// "the data file was changed while the volume was closed"; for the end of a sentence.
std::string_view to_string(VoidReason reason);

struct OpenEvent {
  OpenKind kind = OpenKind::clean;
  Epoch epoch = 0;                   // the current one from here on
  Id128 session;                     // ties the live map to this open
  std::uint64_t intents_before = 0;  // intent records up to this sequence say nothing any more
  Epoch recovered = 0;      // power_loss: the newest epoch given to blocks that were hot; else 0
  Epoch vouched_since = 0;  // points before it are void from here on; 0: none is
  VoidReason void_reason = VoidReason::none;
};
struct CloseEvent {
  Epoch epoch = 0;
  FileIdentity data;
  std::uint64_t page_versions = 0;  // the sum of all pages' sequences: what the next open must find
};
struct ResizeEvent {
  std::uint64_t size = 0;      // bytes
  std::uint64_t old_size = 0;  // bytes
  Epoch epoch = 0;             // new blocks changed in it
  bool finished = false;       // false: decided, to be rolled forward; true: done
};
struct RevertEvent {
  std::string checkpoint;
  bool finished = false;
};
struct LostEvent {  // every volatile checkpoint that depends on a layer no durable one needs
  std::vector<std::string> checkpoints;
};
/// A layer for a cut that is about to be, recorded before the gate opens where older checkpoints
/// exist: what is held in it from then on they need, whether or not the cut itself gets its record.
struct LayerEvent {
  LayerId layer = 0;
  Epoch epoch = 0;
  bool present = true;  // false: the cut was called off before its epoch ended
};
/// The volume was moved or copied to where it is, as whoever did it has said (closed_volume.h).
struct IdentityEvent {
  Id128 volume;             // its id from here on: of a copy a new one
  FileIdentity data;        // of the data file, in its new place
  Epoch vouched_since = 0;  // as in an open; of a copy the state's epoch: all older points are void
  VoidReason void_reason = VoidReason::none;
  bool lost = false;  // the data file is not what it was at the close: checkpoints cannot be read
};
using JournalEvent =
    std::variant<CutEvent, ReleaseEvent, ConvertEvent, DeleteRefpointEvent, SettleEvent, OpenEvent,
                 CloseEvent, ResizeEvent, RevertEvent, LostEvent, LayerEvent, IdentityEvent>;

struct VolumeState {
  // Its own. The superblock's, which every structure of the files bears, until it becomes a copy:
  // then that one is the original's, and only the mark by which its structures are known.
  Id128 volume;
  std::uint64_t size = 0;           // bytes
  std::string backing;              // "" for none
  std::uint64_t backing_limit = 0;  // bytes of the backing that count; beyond it reads zero
  Epoch epoch = 1;                  // a lower bound of the current one
  Id128 session;
  std::uint64_t intents_before = 0;
  bool clean = false;
  FileIdentity data;                          // valid if clean
  std::uint64_t page_versions = 0;            // likewise: the sum of all pages' sequences
  Epoch recovered = 0;                        // reference points before it get inexact answers
  Epoch vouched_since = 0;                    // reference points before it are void
  VoidReason void_reason = VoidReason::none;  // why, of the newest of them
  LayerId next_layer = 1;
  std::vector<Checkpoint> checkpoints;  // by epoch, ascending
  std::map<std::string, Refpoint> refpoints;
  std::vector<Layer> layers;  // by epoch, ascending
  std::optional<ResizeEvent> pending_resize;
  std::optional<RevertEvent> pending_revert;

  /// `corrupt` if the event cannot follow this state (a file from elsewhere, a mistake of ours).
  Result<void> apply(const JournalEvent& event);

  const Checkpoint* find_checkpoint(const std::string& name) const;
  const Refpoint* find_refpoint(const std::string& name) const;
  /// Points of epochs before `since` are void.
  void stop_vouching(Epoch since, VoidReason reason);
  /// Whether a live durable checkpoint lies at or before the layer (rule 7).
  bool layer_is_durable(Epoch layer_epoch) const;

 private:
  Checkpoint* mutable_checkpoint(const std::string& name);
  void remove_checkpoint(const std::string& name);
  void add_layer(LayerId id, Epoch layer_epoch);
  void drop_needless_layers();

  Result<void> on(const CutEvent& event);
  Result<void> on(const ReleaseEvent& event);
  Result<void> on(const ConvertEvent& event);
  Result<void> on(const DeleteRefpointEvent& event);
  Result<void> on(const SettleEvent& event);
  Result<void> on(const OpenEvent& event);
  Result<void> on(const CloseEvent& event);
  Result<void> on(const ResizeEvent& event);
  Result<void> on(const RevertEvent& event);
  Result<void> on(const LostEvent& event);
  Result<void> on(const LayerEvent& event);
  Result<void> on(const IdentityEvent& event);
};

/// A record of the journal: the whole state (the first of a generation), or an event upon it.
struct JournalRecord {
  std::uint64_t generation = 0;
  std::uint64_t sequence = 0;  // 0: the state
  std::variant<VolumeState, JournalEvent> content;
};

constexpr std::size_t journal_header_size = 64;
// Of an event's record, bytes; so that whoever finds a damaged one knows how far to look for the
// next. A state may take half an area.
constexpr std::uint64_t event_record_size_max = 1 * MiB;
constexpr std::size_t lost_names_max = 4096;  // in one event: longer lists go in several
static_assert(lost_names_max * (2 + name_length_max) + journal_header_size + 4 <=
              event_record_size_max);

/// The record, padded with zeros to whole sectors.
std::vector<std::byte> encode_state(const Id128& volume, std::uint64_t generation,
                                    const VolumeState& state);
std::vector<std::byte> encode_event(const Id128& volume, std::uint64_t generation,
                                    std::uint64_t sequence, const JournalEvent& event);

/// What the first sector of a record says of its length, so that the rest can be read; nullopt if
/// there is no record of this volume.
struct RecordHead {
  std::uint64_t generation = 0;
  std::uint64_t sequence = 0;
  std::uint64_t length = 0;  // bytes with header, before padding
};
std::optional<RecordHead> peek_record(const Id128& volume, Bytes sector);
/// `corrupt` for a record that is torn or does not decode; `unsupported` for a whole one of a kind
/// or a version that is not known here.
Result<JournalRecord> decode_record(const Id128& volume, Bytes record);

}  // namespace berth::disk
