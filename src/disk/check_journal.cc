#include "disk/check_journal.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "disk/layout.h"

namespace berth::disk {
namespace {

using Stray = AreaSurvey::Stray;

/// A whole record at the offset: nothing for anything else; `unsupported` as decode_record.
Result<std::optional<JournalRecord>> record_at(const Id128& volume, Bytes area,
                                               std::uint64_t offset, std::uint64_t* padded_length) {
  if (offset >= area.size()) return std::nullopt;
  const Bytes rest = area.subspan(offset);
  const auto head = peek_record(volume, rest);
  if (!head || head->length > journal_area_size - offset) return std::nullopt;
  auto record = decode_record(volume, rest);
  if (record) {
    *padded_length = round_up(head->length, sector_size);
    return std::optional(std::move(*record));
  }
  if (record.error().kind() == ErrorKind::corrupt) return std::nullopt;
  return failure(std::move(record).error());
}

/// Every whole event from `from` on, of the given generation; of the newest one there is where none
/// is given.
Result<std::vector<Stray>> find_strays(const Id128& volume, Bytes area, std::uint64_t from,
                                       std::optional<std::uint64_t> wanted,
                                       std::uint64_t* generation) {
  std::vector<Stray> strays;
  std::uint64_t newest = wanted.value_or(0);
  for (std::uint64_t offset = from; offset < area.size();) {
    std::uint64_t length = sector_size;
    auto record = TRY(record_at(volume, area, offset, &length));
    if (record && record->sequence > 0 && std::holds_alternative<JournalEvent>(record->content)) {
      if (!wanted && record->generation > newest) {
        newest = record->generation;
        strays.clear();
      }
      if (record->generation == newest) {
        strays.push_back({.offset = offset,
                          .length = length,
                          .sequence = record->sequence,
                          .event = std::get<JournalEvent>(std::move(record->content))});
      }
    }
    offset += length;
  }
  *generation = newest;
  return strays;
}

/// Applies the event as a whole or not at all: of a cut with two names, either may be taken.
Result<void> apply_whole(VolumeState& state, const JournalEvent& event) {
  if (const auto* cut = std::get_if<CutEvent>(&event);
      cut != nullptr && state.find_refpoint(cut->refpoint) != nullptr) {
    return failure(ErrorKind::corrupt,
                   fmt::format("there is a reference point '{}' already", cut->refpoint));
  }
  return state.apply(event);
}

}  // namespace

Result<AreaSurvey> survey_area(const Id128& volume, Bytes area) {
  area = area.first(std::min<std::uint64_t>(area.size(), journal_area_size));
  AreaSurvey survey;
  survey.blank = is_zero(area);
  if (survey.blank) return survey;

  std::uint64_t length = 0;
  auto head = TRY(record_at(volume, area, 0, &length));
  if (!head || head->sequence != 0 || !std::holds_alternative<VolumeState>(head->content)) {
    survey.strays = TRY(find_strays(volume, area, 0, std::nullopt, &survey.generation));
    return survey;
  }
  survey.generation = head->generation;
  survey.state = std::get<VolumeState>(std::move(head->content));
  survey.end = length;
  while (survey.end < area.size()) {
    auto record = TRY(record_at(volume, area, survey.end, &length));
    if (!record || record->generation != survey.generation ||
        record->sequence != survey.records + 1)
      break;
    const auto* event = std::get_if<JournalEvent>(&record->content);
    if (event == nullptr) break;
    if (const auto applied = apply_whole(*survey.state, *event); !applied) {
      survey.trouble = fmt::format("record {}, {}, cannot follow what is before it ({})",
                                   survey.records + 1, describe(*event), applied.error().message());
      break;
    }
    ++survey.records;
    survey.end += length;
  }

  auto strays = TRY(find_strays(volume, area, survey.end, survey.generation, &survey.generation));
  std::erase_if(strays, [&survey](const Stray& stray) { return stray.sequence <= survey.records; });
  if (!strays.empty() && survey.trouble.empty()) {
    survey.trouble = fmt::format("record {} cannot be read, and {} after it can",
                                 survey.records + 1, strays.size());
  }
  survey.strays = std::move(strays);
  if (survey.trouble.empty() && survey.end + sector_size <= area.size()) {
    const Bytes sector = area.subspan(survey.end, sector_size);
    const auto stale = TRY(record_at(volume, area, survey.end, &length));
    survey.torn_tail = !stale && !is_zero(sector);
  }
  return survey;
}

namespace {

/// What must be given up when records are missing between `state` and `later`. A missing record may
/// have been any:
/// - a release, a conversion, a cut with a layer: then no checkpoint from before can be vouched for
/// (rule 7);
/// - an opening that found another data file: then no reference point from before can (rule 9). An
/// opening of that
///   kind follows a close, so a single missing record of a volume that was open was none;
/// - a copy's first record, which an opening follows: then the same.
/// What the later records say stands: points that they made came after whatever is missing.
class Bridge {
 public:
  explicit Bridge(JournalVerdict& verdict) : verdict_(verdict), state_(verdict.state) {}

  void cross(std::span<const Stray> later, bool one_is_missing) {
    verdict_.incomplete = true;
    const bool before_an_open =
        !later.empty() && std::holds_alternative<OpenEvent>(later.front().event);
    give_up_points(one_is_missing && !state_.clean && !before_an_open);
    for (const Stray& stray : later) apply(stray.event);
  }

 private:
  void give_up_points(bool refpoints_stand) {
    LostEvent lost;
    for (const Checkpoint& checkpoint : state_.checkpoints) {
      if (checkpoint.lost) continue;
      lost.checkpoints.push_back(checkpoint.name);
      verdict_.lost_checkpoints.push_back(checkpoint.name);
    }
    // Names only what there is, so it applies.
    (void)state_.apply(lost);
    if (!refpoints_stand) {
      for (const auto& [name, refpoint] : state_.refpoints) {
        if (refpoint.epoch >= state_.vouched_since) verdict_.void_refpoints.push_back(name);
      }
      // Every cut so far is of an epoch before it; every later one of this epoch or after it.
      state_.stop_vouching(state_.epoch, VoidReason::records_missing);
    }
    // Whether it was finished may be what is missing. Doing it again could zero what was written
    // since; leaving a growth unfinished leaves new blocks that read zero, and a shrinking one
    // leaves bytes that nobody reads.
    state_.pending_resize.reset();
  }

  void apply(const JournalEvent& event) {
    // A name that the missing records freed and a later one took again.
    if (const auto* cut = std::get_if<CutEvent>(&event)) {
      std::erase_if(state_.checkpoints, [cut](const Checkpoint& one) {
        return one.lost && one.name == cut->checkpoint;
      });
      if (const Refpoint* old = state_.find_refpoint(cut->refpoint); old != nullptr) {
        if (old->epoch < state_.vouched_since) state_.refpoints.erase(cut->refpoint);
      }
    }
    // The record that decided it is missing; the one that says it is done has the size too.
    if (const auto* resize = std::get_if<ResizeEvent>(&event);
        resize != nullptr && resize->finished) {
      if (resize->size != 0 && resize->size <= volume_size_max) {
        state_.size = resize->size;
        state_.backing_limit = std::min(state_.backing_limit, resize->size);
      }
    }
    if (!apply_whole(state_, event)) verdict_.unused_records.push_back(describe(event));
  }

  JournalVerdict& verdict_;
  VolumeState& state_;
};

/// The generation of `lost`, whose first record is damaged, began with the state that `before` ends
/// with. True if its other records fit: then nothing is missing.
bool rebuild_head(const Id128& volume, const AreaSurvey& before, const AreaSurvey& lost,
                  JournalVerdict& verdict) {
  if (!before.trouble.empty() || lost.generation != before.generation + 1) return false;
  std::vector<std::byte> head = encode_state(volume, lost.generation, *before.state);
  VolumeState state = *before.state;
  std::uint64_t offset = head.size();
  std::uint64_t sequence = 0;
  for (const Stray& stray : lost.strays) {
    if (stray.offset != offset || stray.sequence != ++sequence || !state.apply(stray.event))
      return false;
    offset += stray.length;
  }
  verdict.state = std::move(state);
  verdict.rebuilt_head = std::move(head);
  return true;
}

bool has_newer_strays(const AreaSurvey& area, const AreaSurvey& than) {
  return !area.state && !area.strays.empty() && area.generation > than.generation;
}

bool one_is_missing(const AreaSurvey& area) {
  return !area.strays.empty() && area.strays.front().sequence == area.records + 2;
}

}  // namespace

JournalVerdict judge_journal(const Id128& volume, const std::array<AreaSurvey, 2>& areas) {
  JournalVerdict verdict;
  verdict.generation = std::max(areas[0].generation, areas[1].generation);
  if (!areas[0].state && !areas[1].state) return verdict;
  verdict.readable = true;
  verdict.refuses = {!areas[0].trouble.empty(), !areas[1].trouble.empty()};
  verdict.area =
      !areas[0].state || (areas[1].state && areas[1].generation > areas[0].generation) ? 1 : 0;
  const unsigned other = 1 - verdict.area;
  const AreaSurvey& current = areas[verdict.area];
  const AreaSurvey& rest = areas[other];

  if (has_newer_strays(rest, current) && rebuild_head(volume, current, rest, verdict)) {
    verdict.area = other;
    return verdict;
  }
  verdict.state = *current.state;
  Bridge bridge(verdict);
  if (!current.trouble.empty()) {
    verdict.missing = current.trouble;
    bridge.cross(current.strays, one_is_missing(current));
  }
  if (has_newer_strays(rest, current)) {
    verdict.missing =
        fmt::format("the first record of generation {} cannot be read", rest.generation);
    bridge.cross(rest.strays, false);
  }
  return verdict;
}

// --- For people.

namespace {

std::string words(const CutEvent& event) {
  std::string text = fmt::format("the cut of epoch {}", event.epoch);
  if (!event.checkpoint.empty()) text += fmt::format(" (checkpoint '{}')", event.checkpoint);
  if (!event.refpoint.empty()) text += fmt::format(" (reference point '{}')", event.refpoint);
  return text;
}
std::string words(const ReleaseEvent& event) {
  return fmt::format("the release of checkpoint '{}'", event.checkpoint);
}
std::string words(const ConvertEvent& event) {
  return fmt::format("the conversion of checkpoint '{}' to reference point '{}'", event.checkpoint,
                     event.refpoint);
}
std::string words(const DeleteRefpointEvent& event) {
  return fmt::format("the deletion of reference point '{}'", event.refpoint);
}
std::string words(const SettleEvent& event) {
  return fmt::format("the {} of group {}", event.committed ? "commit" : "refusal",
                     event.group.to_string());
}
std::string words(const OpenEvent& event) {
  return fmt::format("an opening in epoch {}", event.epoch);
}
std::string words(const CloseEvent& event) {
  return fmt::format("a close in epoch {}", event.epoch);
}
std::string words(const ResizeEvent& event) {
  return fmt::format("the {} of a resize to {} bytes", event.finished ? "end" : "decision",
                     event.size);
}
std::string words(const RevertEvent& event) {
  return fmt::format("the {} of a revert to '{}'", event.finished ? "end" : "decision",
                     event.checkpoint);
}
std::string words(const LostEvent& event) {
  return fmt::format("the loss of checkpoints '{}'", fmt::join(event.checkpoints, "', '"));
}
std::string words(const LayerEvent& event) {
  return fmt::format("the {} of layer {}", event.present ? "announcement" : "withdrawal",
                     event.layer);
}
std::string words(const IdentityEvent& event) {
  return fmt::format("the arrival in another place, as volume {}", event.volume.to_string());
}

}  // namespace

std::string describe(const JournalEvent& event) {
  return std::visit([](const auto& one) { return words(one); }, event);
}

}  // namespace berth::disk
