#include "disk/check.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "disk/check_steps.h"
#include "disk/locked_file.h"
#include "disk/map_file.h"

namespace berth::disk {

std::string_view to_string(Severity severity) {
  switch (severity) {
    case Severity::note: return "note";
    case Severity::warning: return "warning";
    case Severity::error: return "error";
  }
  return "error";
}

std::string describe(const CheckReport& report) {
  std::string text;
  for (const CheckFinding& finding : report.findings) {
    text +=
        fmt::format("{:<7}  {}: {}{}\n", to_string(finding.severity), finding.where, finding.what,
                    finding.repaired     ? " (repaired)"
                    : finding.repairable ? " (--repair has a remedy)"
                                         : "");
  }
  if (report.findings_left_out > 0)
    text += fmt::format("and {} findings more\n", report.findings_left_out);
  text += fmt::format(
      "{} records of the journal, {} pages of the map, {} holds with {} entries ({}) checked: {} "
      "errors, {} of them "
      "repaired, {} warnings, {} notes\n",
      report.journal_records, report.pages, report.hold_layers, report.hold_entries,
      format_size(report.hold_bytes), report.errors, report.errors_repaired, report.warnings,
      report.notes);
  return text;
}

Task<Result<CheckReport>> check_volume(Loop& loop, Directory& volume_directory,
                                       CheckOptions options) {
  VolumeCheck check(loop, volume_directory, options);
  auto report = co_await check.run();
  if (report) co_return std::move(*report);
  co_return failure(std::move(report).error().with_context(
      fmt::format("cannot check the volume '{}'", volume_directory.path())));
}

Task<Result<CheckReport>> VolumeCheck::run() {
  CO_TRY(co_await open_files());
  bool goes_on = CO_TRY(co_await check_superblock());
  if (goes_on) goes_on = CO_TRY(co_await check_journal());
  if (goes_on) goes_on = check_state();
  if (goes_on) {
    CO_TRY(find_live_map());
    CO_TRY(co_await check_data());
    CO_TRY(co_await check_intents());
    CO_TRY(co_await check_holds());
    CO_TRY(co_await check_torn_entries());
    CO_TRY(co_await check_pages());
    if (options_.repair) CO_TRY(co_await repair());
  }
  co_return std::move(report_);
}

// --- Findings.

VolumeCheck::Handle VolumeCheck::add(Severity severity, std::string where, std::string what,
                                     bool repairable) {
  switch (severity) {
    case Severity::note: ++report_.notes; break;
    case Severity::warning: ++report_.warnings; break;
    case Severity::error: ++report_.errors; break;
  }
  if (report_.findings.size() == check_findings_max) {
    ++report_.findings_left_out;
    return {.index = SIZE_MAX, .severity = severity};
  }
  report_.findings.push_back({.severity = severity,
                              .where = std::move(where),
                              .what = std::move(what),
                              .repairable = repairable,
                              .repaired = false});
  return {.index = report_.findings.size() - 1, .severity = severity};
}

void VolumeCheck::mark_repaired(const std::vector<Handle>& findings) {
  for (const Handle& handle : findings) {
    if (handle.severity == Severity::error) ++report_.errors_repaired;
    if (handle.index < report_.findings.size()) report_.findings[handle.index].repaired = true;
  }
}

Task<Result<std::size_t>> VolumeCheck::read(File& file, std::string where, std::uint64_t offset,
                                            MutableBytes into) {
  auto whole = co_await file.read(offset, into);
  if (whole || whole.error().kind() != ErrorKind::io_error) co_return whole;
  std::size_t got = 0;
  std::size_t refused = 0;
  std::string reason;
  while (got < into.size()) {
    const MutableBytes sector =
        into.subspan(got, std::min<std::size_t>(sector_size, into.size() - got));
    const auto part = co_await file.read(offset + got, sector);
    if (!part) {
      if (part.error().kind() != ErrorKind::io_error) co_return part;
      std::memset(sector.data(), 0xff, sector.size());
      ++refused;
      reason = part.error().message();
    } else if (*part < sector.size()) {
      got += *part;
      break;
    }
    got += sector.size();
  }
  if (refused > 0) {
    error(std::move(where),
          fmt::format("{} of {} sectors from offset {} on cannot be read ({})", refused,
                      divide_up(into.size(), sector_size), offset, reason));
  }
  co_return got;
}

// --- The files.

Task<Result<void>> VolumeCheck::open_files() {
  const bool is_volume = CO_TRY(directory_.exists(MapFile::file_name));
  if (!is_volume)
    co_return failure(ErrorKind::not_found, "there is no block map: this is no volume");
  const bool read_only = !options_.repair;
  map_ = CO_TRY(co_await open_locked(loop_, directory_, MapFile::file_name,
                                     {.read_only = read_only, .direct = true}));
  auto data = co_await open_locked(loop_, directory_, "data", {.read_only = read_only});
  if (data) {
    data_ = std::move(*data);
  } else if (data.error().kind() != ErrorKind::not_found) {
    co_return failure(std::move(data).error());
  }
  auto holds = directory_.open_directory(HoldLayer::directory_name, false);
  if (holds) {
    holds_ = std::move(*holds);
  } else if (holds.error().kind() != ErrorKind::not_found) {
    co_return failure(std::move(holds).error());
  }
  // What a dead process wrote and did not sync is read here and may be gone after a power loss: a
  // repair must not build on it before it is durable.
  if (options_.repair) {
    CO_TRY(co_await map_->sync());
    if (data_) CO_TRY(co_await data_->sync());
  }
  co_return Result<void>{};
}

Task<Result<bool>> VolumeCheck::check_superblock() {
  constexpr std::array<std::uint64_t, 2> offsets{superblock_offset, superblock_copy_offset};
  constexpr std::array<const char*, 2> names{"map, superblock", "map, superblock copy"};
  std::array<std::optional<Superblock>, 2> found;
  for (std::size_t copy = 0; copy < 2; ++copy) {
    const AlignedBuffer sector = AlignedBuffer::zeroed(sector_size);
    CO_TRY(co_await read(*map_, names[copy], offsets[copy], sector.bytes()));
    auto decoded = decode_superblock(sector.bytes());
    if (decoded) {
      found[copy] = *decoded;
    } else if (decoded.error().kind() != ErrorKind::corrupt) {
      co_return failure(std::move(decoded).error());
    } else {
      superblock_findings_.push_back(error(names[copy], decoded.error().message(), true));
    }
  }
  if (!found[0] && !found[1]) {
    for (const Handle& finding : superblock_findings_)
      report_.findings[finding.index].repairable = false;
    error("map",
          "both copies of the superblock are damaged: nobody knows whose map this is. The data "
          "file is whole as "
          "far as it goes: adopt it as a new volume, or restore a backup");
    co_return false;
  }
  if (found[0] && found[1] && *found[0] != *found[1]) {
    // One is of another volume: of the two, the one whose journal this is.
    const auto head = co_await read_area(0);
    const auto other = co_await read_area(1);
    const auto owns_journal = [&](const Superblock& superblock) {
      return (head && peek_record(superblock.volume, *head)) ||
             (other && peek_record(superblock.volume, *other));
    };
    const bool second = !owns_journal(*found[0]) && owns_journal(*found[1]);
    superblock_findings_.push_back(
        error(names[second ? 0 : 1], "it differs from the other copy", true));
    found[second ? 0 : 1].reset();
  }
  superblock_ = found[0] ? *found[0] : *found[1];
  if (!found[0]) bad_superblock_ = superblock_offset;
  if (!found[1]) bad_superblock_ = superblock_copy_offset;
  report_.volume = superblock_.volume;
  co_return true;
}

// --- The journal.

/// The area's bytes as far as it holds any.
Task<Result<std::vector<std::byte>>> VolumeCheck::read_area(unsigned area) {
  constexpr std::uint64_t bytes_at_once = MiB;
  const std::uint64_t begin = area == 0 ? journal_offset_a : journal_offset_b;
  const std::uint64_t end = std::min(CO_TRY(map_->size()), begin + journal_area_size);
  std::uint64_t data_end = begin;
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t data = CO_TRY(map_->next_data(at));
    if (data >= end) break;
    at = CO_TRY(map_->next_hole(data));
    data_end = std::min(at, end);
  }
  data_end = std::min(round_up(data_end, sector_size), begin + journal_area_size);
  std::vector<std::byte> bytes(data_end - begin);
  const AlignedBuffer buffer(bytes_at_once);
  for (std::uint64_t at = begin; at < data_end; at += bytes_at_once) {
    const MutableBytes piece = buffer.first(std::min(bytes_at_once, data_end - at));
    std::memset(piece.data(), 0, piece.size());
    CO_TRY(co_await read(*map_, fmt::format("map, journal area {}", area == 0 ? 'A' : 'B'), at,
                         piece));
    std::memcpy(bytes.data() + (at - begin), piece.data(), piece.size());
  }
  co_return bytes;
}

Task<Result<bool>> VolumeCheck::check_journal() {
  constexpr std::array<const char*, 2> names{"map, journal area A", "map, journal area B"};
  std::array<AreaSurvey, 2> areas;
  for (unsigned area = 0; area < 2; ++area) {
    const auto bytes = CO_TRY(co_await read_area(area));
    areas[area] = CO_TRY(survey_area(superblock_.volume, bytes));
    report_.journal_records += areas[area].records;
  }
  journal_ = judge_journal(superblock_.volume, areas);
  if (!journal_.readable) {
    error("map, journal",
          "neither area begins with a whole state: sizes, checkpoints and reference points are "
          "lost. The data file is "
          "whole as far as it goes: adopt it as a new volume, or restore a backup");
    co_return false;
  }
  for (unsigned area = 0; area < 2; ++area) {
    const AreaSurvey& survey = areas[area];
    if (survey.torn_tail)
      add(Severity::note, names[area],
          "the last record was cut short: what it says never happened");
    if (!survey.blank && !survey.state && survey.strays.empty()) {
      add(Severity::note, names[area],
          "it holds no state: a new generation that never was complete");
    }
  }
  if (journal_.rebuilt_head) {
    state_findings_.push_back(
        error(names[journal_.area],
              fmt::format("the first record of generation {} cannot be read; the end of the one "
                          "before says the same, and nothing is lost",
                          journal_.generation),
              true));
  }
  const unsigned other = 1 - journal_.area;
  if (journal_.refuses[other]) {
    state_findings_.push_back(
        error(names[other],
              fmt::format("{}; nothing depends on it, but the volume may refuse to open",
                          areas[other].trouble),
              true));
  }
  if (journal_.incomplete) {
    state_findings_.push_back(error(
        names[journal_.area],
        fmt::format("{}: records are missing, and with them what they made, removed or found out",
                    journal_.missing),
        true));
    for (const std::string& name : journal_.lost_checkpoints) {
      state_findings_.push_back(
          error(fmt::format("checkpoint '{}'", name),
                "it is older than the missing records, one of which may have released it: it is "
                "given up",
                true));
    }
    for (const std::string& name : journal_.void_refpoints) {
      state_findings_.push_back(
          error(fmt::format("reference point '{}'", name),
                "it is older than the missing records, one of which may have said that the data "
                "file was changed: changes since it ask for a full backup",
                true));
    }
    for (const std::string& record : journal_.unused_records) {
      state_findings_.push_back(
          error(names[journal_.area],
                fmt::format("without the missing records, {} makes no sense", record), true));
    }
    state_changed_ = true;
  }
  newest_epoch_ = state().epoch;
  report_.volume = state().volume;
  co_return true;
}

// --- What the journal says.

bool VolumeCheck::check_state() {
  const VolumeState& now = state();
  if (now.size == 0 || now.size > volume_size_max || now.size % 512 != 0) {
    error("map, journal", fmt::format("a volume of {} bytes cannot be", now.size));
    return false;
  }
  if (now.epoch == 0 || now.epoch > epoch_max) {
    error("map, journal", fmt::format("an epoch of {} cannot be", now.epoch));
    return false;
  }
  if (now.backing_limit > now.size) {
    error("map, journal", fmt::format("{} bytes of the backing are within a volume of {}",
                                      now.backing_limit, now.size));
  }
  check_points();
  check_layers();
  if (now.pending_resize) {
    add(Severity::note, "map, journal",
        fmt::format("a resize to {} bytes is unfinished: the next open finishes it",
                    now.pending_resize->size));
  }
  if (now.pending_revert) {
    const std::string& name = now.pending_revert->checkpoint;
    const Checkpoint* target = now.find_checkpoint(name);
    if (target != nullptr && !target->lost) {
      add(Severity::note, "map, journal",
          fmt::format("a revert to '{}' is unfinished: the next open finishes it", name));
    } else {
      error("map, journal",
            fmt::format(
                "a revert to '{}' is unfinished, and its checkpoint is gone: the disk is part "
                "what it was and part what it should become",
                name));
    }
  }
  return true;
}

void VolumeCheck::check_points() {
  const VolumeState& now = state();
  std::vector<std::string> lost;
  Epoch before = 0;
  for (const Checkpoint& checkpoint : now.checkpoints) {
    const std::string where = fmt::format("checkpoint '{}'", checkpoint.name);
    if (checkpoint.epoch >= now.epoch || checkpoint.epoch < before) {
      error(where, fmt::format("its epoch {} is out of order", checkpoint.epoch));
    }
    before = checkpoint.epoch;
    if (checkpoint.size == 0 || checkpoint.size > volume_size_max) {
      error(where, fmt::format("a size of {} bytes cannot be", checkpoint.size));
    }
    if (checkpoint.lost) {
      if (std::ranges::find(journal_.lost_checkpoints, checkpoint.name) ==
          journal_.lost_checkpoints.end()) {
        add(Severity::note, where, "it was given up earlier: delete it");
      }
      continue;
    }
    const auto of_it = [&checkpoint](const Layer& layer) {
      return layer.epoch == checkpoint.epoch;
    };
    if (std::ranges::any_of(now.layers, of_it)) continue;
    state_findings_.push_back(error(where, "the journal has no hold for it: it is lost", true));
    lost.push_back(checkpoint.name);
  }
  for (const auto& [name, refpoint] : now.refpoints) {
    if (refpoint.epoch >= now.epoch) {
      error(fmt::format("reference point '{}'", name),
            fmt::format("its epoch {} has not ended yet", refpoint.epoch));
    }
  }
  if (lost.empty()) return;
  (void)state().apply(LostEvent{std::move(lost)});  // names only what there is, so it applies
  state_changed_ = true;
}

void VolumeCheck::check_layers() {
  const VolumeState& now = state();
  for (std::size_t i = 0; i < now.layers.size(); ++i) {
    const Layer& layer = now.layers[i];
    const bool ordered =
        i == 0 || (now.layers[i - 1].epoch <= layer.epoch && now.layers[i - 1].id < layer.id);
    if (layer.id == 0 || layer.id >= now.next_layer || !ordered) {
      error(fmt::format("holds/{}", HoldLayer::file_name(layer.id)),
            "the journal has it out of order");
    }
  }
}

/// A keeper that died left a newer map than the disk has: the next open goes on with it.
Result<void> VolumeCheck::find_live_map() {
  if (state().clean) return {};
  if (options_.live_store == nullptr) {
    add(Severity::note, "map", "the volume was not closed");
    return {};
  }
  auto live = LiveMap::adopt(*options_.live_store, {.volume = state().volume,
                                                    .session = state().session,
                                                    .block_size = superblock_.block_size,
                                                    .page_count = page_count()});
  if (live) {
    live_.emplace(std::move(*live));
    add(Severity::note, "map",
        "its keeper died; the live map is there, and the next open goes on with it");
  } else if (live.error().kind() == ErrorKind::not_found) {
    add(Severity::note, "map",
        "the volume was not closed before the machine stopped: the next open recovers it");
  } else {
    return failure(std::move(live).error());
  }
  return {};
}

// --- The data file.

Task<Result<void>> VolumeCheck::check_data() {
  if (!data_) {
    error("data", "the data file is missing");
    co_return Result<void>{};
  }
  const VolumeState& now = state();
  const std::uint64_t size = CO_TRY(data_->size());
  if (size < now.size) {
    error("data", fmt::format("it has {} bytes, and the volume {}", size, now.size));
  } else if (size > now.size && !now.pending_resize) {
    add(Severity::note, "data",
        fmt::format("it has {} bytes, and the volume uses {} of them", size, now.size));
  }
  if (!now.clean) co_return Result<void>{};
  const FileIdentity identity = CO_TRY(data_->identity());
  if (identity == now.data) co_return Result<void>{};
  std::vector<std::string> differences;
  if (identity.device_id != now.data.device_id) {
    differences.push_back(
        fmt::format("the device was '{}' and is '{}'", now.data.device_id, identity.device_id));
  }
  if (identity.size != now.data.size) {
    differences.push_back(fmt::format("it had {} bytes and has {}", now.data.size, identity.size));
  }
  if (identity.inode != now.data.inode || identity.device != now.data.device) {
    differences.emplace_back("it is another file");
  }
  if (identity.modified_ns != now.data.modified_ns) differences.emplace_back("it was modified");
  error("data", fmt::format("it was changed while the volume was closed ({}): the next open gives "
                            "every checkpoint up "
                            "and asks for full backups",
                            fmt::join(differences, ", ")));
  co_return Result<void>{};
}

}  // namespace berth::disk
