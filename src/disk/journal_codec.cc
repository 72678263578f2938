// The bytes of the journal's records (docs/formats/block-map.md, "Journal").
#include <cstring>

#include <fmt/format.h>

#include "base/checksum.h"
#include "disk/journal.h"
#include "disk/layout.h"

namespace berth::disk {
namespace {

constexpr std::uint32_t record_magic = 0x4e524a42;  // "BJRN"
constexpr std::uint16_t kind_state = 0;  // events are numbered from 1, in the variant's order
constexpr std::size_t text_length_max = 4096;
// The fewest bytes that each takes, with names of none: what count() holds a count against.
constexpr std::size_t text_size_min = 2;
constexpr std::size_t point_size_min = text_size_min + 4 + 16 + 8 + 8 + 16 + 1;
constexpr std::size_t checkpoint_size_min = point_size_min + 1 + 1;  // durability, lost
constexpr std::size_t layer_size = 8 + 4;

// --- A growing buffer of little-endian fields.
class Sink {
 public:
  template <std::unsigned_integral T>
  void le(T value) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    store_le<T>(bytes_.data() + at, value);
  }
  void id(const Id128& id) { raw(id.bytes); }
  void text(const std::string& text) {
    CHECK(text.size() <= text_length_max);
    le<std::uint16_t>(static_cast<std::uint16_t>(text.size()));
    raw(as_bytes(text));
  }
  void raw(Bytes bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void flag(bool value) { le<std::uint8_t>(value ? 1 : 0); }
  void time(std::int64_t value) { le<std::uint64_t>(static_cast<std::uint64_t>(value)); }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// --- The inverse; `ok()` of the reader tells whether everything was there.
class Source {
 public:
  explicit Source(Bytes bytes) : in_(bytes) {}
  template <std::unsigned_integral T>
  T le() {
    return in_.le<T>();
  }
  Id128 id() {
    Id128 id;
    const Bytes raw = in_.raw(id.bytes.size());
    if (in_.ok()) std::memcpy(id.bytes.data(), raw.data(), raw.size());
    return id;
  }
  std::string text() {
    const auto length = in_.le<std::uint16_t>();
    if (length > text_length_max) ok_ = false;
    return ok() ? std::string(as_text(in_.raw(length))) : std::string();
  }
  bool flag() { return in_.le<std::uint8_t>() != 0; }
  std::int64_t time() { return static_cast<std::int64_t>(in_.le<std::uint64_t>()); }
  /// An enumeration whose values are 0 to `last`.
  template <typename Enum>
  Enum choice(Enum last) {
    const auto value = in_.le<std::uint8_t>();
    if (value > static_cast<std::uint8_t>(last)) ok_ = false;
    return ok() ? static_cast<Enum>(value) : Enum{};
  }
  /// A count of things that take at least `each` bytes: a lie about it must not cost memory.
  std::uint32_t count(std::size_t each) {
    const auto value = in_.le<std::uint32_t>();
    if (value > in_.remaining() / each) ok_ = false;
    return ok() ? value : 0;
  }
  bool ok() const { return ok_ && in_.ok(); }
  bool at_end() const { return in_.remaining() == 0; }

 private:
  Reader in_;
  bool ok_ = true;
};

void put(Sink& out, Durability durability) {
  static_assert(static_cast<int>(Durability::durable) == 0 &&
                static_cast<int>(Durability::volatile_) == 1);
  out.le<std::uint8_t>(static_cast<std::uint8_t>(durability));
}

void put(Sink& out, const FileIdentity& data) {
  out.le<std::uint64_t>(data.size);
  out.le<std::uint64_t>(data.inode);
  out.le<std::uint64_t>(data.device);
  out.time(data.modified_ns);
  // A name that is cut off differs from the device's at the next open, and nothing is vouched for.
  out.text(data.device_id.substr(0, text_length_max));
}
FileIdentity get_identity(Source& in) {
  FileIdentity data;
  data.size = in.le<std::uint64_t>();
  data.inode = in.le<std::uint64_t>();
  data.device = in.le<std::uint64_t>();
  data.modified_ns = in.time();
  data.device_id = in.text();
  return data;
}

// --- Events: put(event) and get<Event>() side by side.
void put(Sink& out, const CutEvent& event) {
  out.le<std::uint32_t>(event.epoch);
  out.id(event.nonce);
  out.text(event.checkpoint);
  out.text(event.refpoint);
  put(out, event.durability);
  out.le<std::uint64_t>(event.layer);
  out.time(event.created_ms);
  out.id(event.group);
}
void get(Source& in, CutEvent& event) {
  event.epoch = in.le<std::uint32_t>();
  event.nonce = in.id();
  event.checkpoint = in.text();
  event.refpoint = in.text();
  event.durability = in.choice(Durability::volatile_);
  event.layer = in.le<std::uint64_t>();
  event.created_ms = in.time();
  event.group = in.id();
}

void put(Sink& out, const ReleaseEvent& event) { out.text(event.checkpoint); }
void get(Source& in, ReleaseEvent& event) { event.checkpoint = in.text(); }

void put(Sink& out, const ConvertEvent& event) {
  out.text(event.checkpoint);
  out.text(event.refpoint);
}
void get(Source& in, ConvertEvent& event) {
  event.checkpoint = in.text();
  event.refpoint = in.text();
}

void put(Sink& out, const DeleteRefpointEvent& event) { out.text(event.refpoint); }
void get(Source& in, DeleteRefpointEvent& event) { event.refpoint = in.text(); }

void put(Sink& out, const SettleEvent& event) {
  out.id(event.group);
  out.flag(event.committed);
}
void get(Source& in, SettleEvent& event) {
  event.group = in.id();
  event.committed = in.flag();
}

void put(Sink& out, const OpenEvent& event) {
  out.le<std::uint8_t>(static_cast<std::uint8_t>(event.kind));
  out.le<std::uint32_t>(event.epoch);
  out.id(event.session);
  out.le<std::uint64_t>(event.intents_before);
  out.le<std::uint32_t>(event.recovered);
  out.le<std::uint32_t>(event.vouched_since);
  out.le<std::uint8_t>(static_cast<std::uint8_t>(event.void_reason));
}
void get(Source& in, OpenEvent& event) {
  event.kind = in.choice(OpenKind::foreign_data);
  event.epoch = in.le<std::uint32_t>();
  event.session = in.id();
  event.intents_before = in.le<std::uint64_t>();
  event.recovered = in.le<std::uint32_t>();
  event.vouched_since = in.le<std::uint32_t>();
  event.void_reason = in.choice(VoidReason::copied);
}

void put(Sink& out, const CloseEvent& event) {
  out.le<std::uint32_t>(event.epoch);
  put(out, event.data);
  out.le<std::uint64_t>(event.page_versions);
}
void get(Source& in, CloseEvent& event) {
  event.epoch = in.le<std::uint32_t>();
  event.data = get_identity(in);
  event.page_versions = in.le<std::uint64_t>();
}

void put(Sink& out, const ResizeEvent& event) {
  out.le<std::uint64_t>(event.size);
  out.le<std::uint64_t>(event.old_size);
  out.le<std::uint32_t>(event.epoch);
  out.flag(event.finished);
}
void get(Source& in, ResizeEvent& event) {
  event.size = in.le<std::uint64_t>();
  event.old_size = in.le<std::uint64_t>();
  event.epoch = in.le<std::uint32_t>();
  event.finished = in.flag();
}

void put(Sink& out, const RevertEvent& event) {
  out.text(event.checkpoint);
  out.flag(event.finished);
}
void get(Source& in, RevertEvent& event) {
  event.checkpoint = in.text();
  event.finished = in.flag();
}

void put(Sink& out, const LostEvent& event) {
  out.le<std::uint32_t>(static_cast<std::uint32_t>(event.checkpoints.size()));
  for (const std::string& name : event.checkpoints) out.text(name);
}
void get(Source& in, LostEvent& event) {
  const auto count = in.count(text_size_min);
  for (std::uint32_t i = 0; i < count && in.ok(); ++i) event.checkpoints.push_back(in.text());
}

void put(Sink& out, const LayerEvent& event) {
  out.le<std::uint64_t>(event.layer);
  out.le<std::uint32_t>(event.epoch);
  out.flag(event.present);
}
void get(Source& in, LayerEvent& event) {
  event.layer = in.le<std::uint64_t>();
  event.epoch = in.le<std::uint32_t>();
  event.present = in.flag();
}

void put(Sink& out, const IdentityEvent& event) {
  out.id(event.volume);
  put(out, event.data);
  out.le<std::uint32_t>(event.vouched_since);
  out.le<std::uint8_t>(static_cast<std::uint8_t>(event.void_reason));
  out.flag(event.lost);
}
void get(Source& in, IdentityEvent& event) {
  event.volume = in.id();
  event.data = get_identity(in);
  event.vouched_since = in.le<std::uint32_t>();
  event.void_reason = in.choice(VoidReason::copied);
  event.lost = in.flag();
}

// --- The state.
void put(Sink& out, const Checkpoint& checkpoint) {
  out.text(checkpoint.name);
  out.le<std::uint32_t>(checkpoint.epoch);
  out.id(checkpoint.nonce);
  put(out, checkpoint.durability);
  out.le<std::uint64_t>(checkpoint.size);
  out.time(checkpoint.created_ms);
  out.id(checkpoint.group);
  out.flag(checkpoint.provisional);
  out.flag(checkpoint.lost);
}
Checkpoint get_checkpoint(Source& in) {
  Checkpoint checkpoint;
  checkpoint.name = in.text();
  checkpoint.epoch = in.le<std::uint32_t>();
  checkpoint.nonce = in.id();
  checkpoint.durability = in.choice(Durability::volatile_);
  checkpoint.size = in.le<std::uint64_t>();
  checkpoint.created_ms = in.time();
  checkpoint.group = in.id();
  checkpoint.provisional = in.flag();
  checkpoint.lost = in.flag();
  return checkpoint;
}

void put(Sink& out, const Refpoint& refpoint) {
  out.text(refpoint.name);
  out.le<std::uint32_t>(refpoint.epoch);
  out.id(refpoint.nonce);
  out.le<std::uint64_t>(refpoint.size);
  out.time(refpoint.created_ms);
  out.id(refpoint.group);
  out.flag(refpoint.provisional);
}
Refpoint get_refpoint(Source& in) {
  Refpoint refpoint;
  refpoint.name = in.text();
  refpoint.epoch = in.le<std::uint32_t>();
  refpoint.nonce = in.id();
  refpoint.size = in.le<std::uint64_t>();
  refpoint.created_ms = in.time();
  refpoint.group = in.id();
  refpoint.provisional = in.flag();
  return refpoint;
}

void put(Sink& out, const VolumeState& state) {
  out.id(state.volume);
  out.le<std::uint64_t>(state.size);
  out.text(state.backing);
  out.le<std::uint64_t>(state.backing_limit);
  out.le<std::uint32_t>(state.epoch);
  out.id(state.session);
  out.le<std::uint64_t>(state.intents_before);
  out.flag(state.clean);
  put(out, state.data);
  out.le<std::uint64_t>(state.page_versions);
  out.le<std::uint32_t>(state.recovered);
  out.le<std::uint32_t>(state.vouched_since);
  out.le<std::uint8_t>(static_cast<std::uint8_t>(state.void_reason));
  out.le<std::uint64_t>(state.next_layer);
  out.le<std::uint32_t>(static_cast<std::uint32_t>(state.checkpoints.size()));
  for (const Checkpoint& checkpoint : state.checkpoints) put(out, checkpoint);
  out.le<std::uint32_t>(static_cast<std::uint32_t>(state.refpoints.size()));
  for (const auto& [name, refpoint] : state.refpoints) put(out, refpoint);
  out.le<std::uint32_t>(static_cast<std::uint32_t>(state.layers.size()));
  for (const Layer& layer : state.layers) {
    out.le<std::uint64_t>(layer.id);
    out.le<std::uint32_t>(layer.epoch);
  }
  out.flag(state.pending_resize.has_value());
  if (state.pending_resize) put(out, *state.pending_resize);
  out.flag(state.pending_revert.has_value());
  if (state.pending_revert) put(out, *state.pending_revert);
}

VolumeState get_state(Source& in) {
  VolumeState state;
  state.volume = in.id();
  state.size = in.le<std::uint64_t>();
  state.backing = in.text();
  state.backing_limit = in.le<std::uint64_t>();
  state.epoch = in.le<std::uint32_t>();
  state.session = in.id();
  state.intents_before = in.le<std::uint64_t>();
  state.clean = in.flag();
  state.data = get_identity(in);
  state.page_versions = in.le<std::uint64_t>();
  state.recovered = in.le<std::uint32_t>();
  state.vouched_since = in.le<std::uint32_t>();
  state.void_reason = in.choice(VoidReason::copied);
  state.next_layer = in.le<std::uint64_t>();
  const auto checkpoints = in.count(checkpoint_size_min);
  for (std::uint32_t i = 0; i < checkpoints && in.ok(); ++i)
    state.checkpoints.push_back(get_checkpoint(in));
  const auto refpoints = in.count(point_size_min);
  for (std::uint32_t i = 0; i < refpoints && in.ok(); ++i) {
    Refpoint refpoint = get_refpoint(in);
    state.refpoints.emplace(refpoint.name, refpoint);
  }
  const auto layers = in.count(layer_size);
  for (std::uint32_t i = 0; i < layers && in.ok(); ++i) {
    const auto id = in.le<std::uint64_t>();
    state.layers.push_back({.id = id, .epoch = in.le<std::uint32_t>()});
  }
  if (in.flag()) get(in, state.pending_resize.emplace());
  if (in.flag()) get(in, state.pending_revert.emplace());
  return state;
}

// magic u32, kind u16, version u16, checksum u64, volume id 16, generation u64, sequence u64,
// length u32 (header and payload), pad to 64, payload. The checksum covers header and payload.
std::vector<std::byte> frame(const Id128& volume, std::uint64_t generation, std::uint64_t sequence,
                             std::uint16_t kind, Sink payload) {
  const std::size_t length = journal_header_size + payload.bytes().size();
  std::vector<std::byte> record(round_up(length, sector_size));
  Writer out(record);
  out.le<std::uint32_t>(record_magic);
  out.le<std::uint16_t>(kind);
  out.le<std::uint16_t>(map_format_version);
  out.le<std::uint64_t>(0);
  out.raw(volume.bytes);
  out.le<std::uint64_t>(generation);
  out.le<std::uint64_t>(sequence);
  out.le<std::uint32_t>(static_cast<std::uint32_t>(length));
  CHECK(out.ok());
  std::memcpy(record.data() + journal_header_size, payload.bytes().data(), payload.bytes().size());
  store_le<std::uint64_t>(record.data() + 8, checksum64(Bytes(record).first(length)));
  return record;
}

template <std::size_t... Index>
std::optional<JournalEvent> get_event(Source& in, std::uint16_t kind,
                                      std::index_sequence<Index...> /*all*/) {
  std::optional<JournalEvent> event;
  const auto try_one = [&]<std::size_t I>(std::integral_constant<std::size_t, I> /*index*/) {
    if (kind == I + 1) get(in, event.emplace().emplace<I>());
  };
  (try_one(std::integral_constant<std::size_t, Index>{}), ...);
  return event;
}

}  // namespace

std::vector<std::byte> encode_state(const Id128& volume, std::uint64_t generation,
                                    const VolumeState& state) {
  Sink payload;
  put(payload, state);
  return frame(volume, generation, 0, kind_state, std::move(payload));
}

std::vector<std::byte> encode_event(const Id128& volume, std::uint64_t generation,
                                    std::uint64_t sequence, const JournalEvent& event) {
  Sink payload;
  std::visit([&payload](const auto& one) { put(payload, one); }, event);
  return frame(volume, generation, sequence, static_cast<std::uint16_t>(event.index() + 1),
               std::move(payload));
}

std::optional<RecordHead> peek_record(const Id128& volume, Bytes sector) {
  Reader in(sector);
  if (in.le<std::uint32_t>() != record_magic) return std::nullopt;
  in.le<std::uint32_t>();
  in.le<std::uint64_t>();
  const Bytes id = in.raw(16);
  RecordHead head;
  head.generation = in.le<std::uint64_t>();
  head.sequence = in.le<std::uint64_t>();
  head.length = in.le<std::uint32_t>();
  const std::uint64_t length_max = head.sequence == 0 ? journal_area_size : event_record_size_max;
  if (!in.ok() || std::memcmp(id.data(), volume.bytes.data(), id.size()) != 0 ||
      head.length < journal_header_size || head.length > length_max) {
    return std::nullopt;
  }
  return head;
}

Result<JournalRecord> decode_record(const Id128& volume, Bytes record) {
  const auto head = peek_record(volume, record);
  if (!head || head->length > record.size())
    return failure(ErrorKind::corrupt, "the journal's record is cut short");
  std::vector<std::byte> copy(record.begin(),
                              record.begin() + static_cast<std::ptrdiff_t>(head->length));
  const auto stored = load_le<std::uint64_t>(copy.data() + 8);
  store_le<std::uint64_t>(copy.data() + 8, 0);
  if (checksum64(copy) != stored)
    return failure(ErrorKind::corrupt, "the journal's record has a bad checksum");

  const auto kind = load_le<std::uint16_t>(record.data() + 4);
  const auto version = load_le<std::uint16_t>(record.data() + 6);
  if (version != map_format_version) {
    return failure(ErrorKind::unsupported,
                   fmt::format("the journal has a record of format {}, this program knows {}",
                               version, map_format_version));
  }
  Source in(Bytes(copy).subspan(journal_header_size));
  JournalRecord decoded{
      .generation = head->generation, .sequence = head->sequence, .content = VolumeState{}};
  if (kind == kind_state) {
    decoded.content = get_state(in);
  } else {
    auto event = get_event(in, kind, std::make_index_sequence<std::variant_size_v<JournalEvent>>{});
    if (!event) {
      return failure(ErrorKind::unsupported,
                     fmt::format("the journal has a record of kind {}, unknown here", kind));
    }
    decoded.content = std::move(*event);
  }
  if (!in.ok() || !in.at_end())
    return failure(ErrorKind::corrupt, "the journal's record does not decode");
  return decoded;
}

}  // namespace berth::disk
