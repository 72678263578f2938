#include "disk/map_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "disk/locked_file.h"

namespace berth::disk {
namespace {

/// What is written in full when the map is made.
constexpr std::array<std::pair<std::uint64_t, std::uint64_t>, 3> allocated_ranges{
    {{intent_ring_offset, intent_slot_count* intent_slot_size},
     {journal_offset_a, intent_slot_size},
     {journal_offset_b, intent_slot_size}}};

std::uint64_t area_offset(unsigned area) { return area == 0 ? journal_offset_a : journal_offset_b; }

Error damaged(std::string what) {
  return {
      ErrorKind::corrupt,
      fmt::format("the block map is damaged: {}; 'berth volume check --repair' may help", what)};
}

}  // namespace

Task<Result<void>> MapFile::create(Loop& loop, Directory& directory, Superblock superblock,
                                   VolumeState state) {
  MapFile map(
      loop, CO_TRY(directory.open(file_name, {.create = true, .exclusive = true, .direct = true})));
  map.superblock_ = superblock;
  state.volume = superblock.volume;
  AlignedBuffer sector(sector_size);
  encode_superblock(superblock, sector.bytes());
  CO_TRY(co_await map.file_->write(superblock_offset, sector.bytes()));
  CO_TRY(co_await map.file_->write(superblock_copy_offset, sector.bytes()));
  // The ring is written in full now, so that a commit never has to allocate: it must not meet a
  // full disk. The same for the journal's beginnings: a checkpoint can still be deleted then.
  CO_TRY(co_await map.fill_holes());
  // The ring is never without a record from now on: without one, it was damaged.
  encode_intents(superblock.volume, {.sequence = 1, .epoch = 0, .regions = {}}, sector.bytes());
  CO_TRY(co_await map.file_->write(intent_ring_offset + intent_slot_size, sector.bytes()));
  CO_TRY(co_await map.write_aligned(journal_offset_a, encode_state(superblock.volume, 1, state)));
  co_return co_await map.file_->sync();
}

Task<Result<std::unique_ptr<MapFile>>> MapFile::open(Loop& loop, Directory& directory,
                                                     bool read_only) {
  auto file = CO_TRY(
      co_await open_locked(loop, directory, file_name, {.read_only = read_only, .direct = true}));
  std::unique_ptr<MapFile> map(new MapFile(loop, std::move(file)));
  // What a dead process wrote and did not sync is readable now and may not be after a power loss.
  if (!read_only) CO_TRY(co_await map->file_->sync());
  CO_TRY(co_await map->read_superblock());
  CO_TRY(co_await map->read_journal());
  map->intent_buffer_ = AlignedBuffer(intent_slot_size);
  co_return map;
}

Task<Result<void>> MapFile::read_superblock() {
  AlignedBuffer sector = AlignedBuffer::zeroed(sector_size);
  CO_TRY(co_await file_->read(superblock_offset, sector.bytes()));
  auto first = decode_superblock(sector.bytes());
  if (!first && first.error().kind() == ErrorKind::corrupt) {
    std::memset(sector.data(), 0, sector_size);
    CO_TRY(co_await file_->read(superblock_copy_offset, sector.bytes()));
    auto second = decode_superblock(sector.bytes());
    if (second) first = std::move(second);
  }
  if (!first) co_return failure(std::move(first).error());
  superblock_ = *first;
  co_return Result<void>{};
}

Task<Result<void>> MapFile::read_journal() {
  std::optional<Area> best;
  for (unsigned area = 0; area < 2; ++area) {
    auto found = CO_TRY(co_await read_area(area_offset(area)));
    if (found && (!best || found->generation > best->generation)) {
      best = std::move(found);
      area_ = area;
    }
  }
  if (!best) co_return failure(damaged("neither journal area holds a whole state"));
  state_ = std::move(best->state);
  generation_ = best->generation;
  sequence_ = best->sequence;
  journal_end_ = best->end;
  co_return Result<void>{};
}

Task<Result<std::optional<MapFile::Area>>> MapFile::read_area(std::uint64_t offset) {
  Area area;
  std::uint64_t length = 0;
  auto head = CO_TRY(co_await read_record(offset, journal_area_size, &length));
  if (!head || head->sequence != 0 || !std::holds_alternative<VolumeState>(head->content)) {
    co_return std::optional<Area>{};
  }
  area.generation = head->generation;
  area.state = std::move(std::get<VolumeState>(head->content));
  area.end = length;
  while (area.end < journal_area_size) {
    auto record =
        CO_TRY(co_await read_record(offset + area.end, journal_area_size - area.end, &length));
    if (!record || record->generation != area.generation || record->sequence != area.sequence + 1)
      break;
    const auto* event = std::get_if<JournalEvent>(&record->content);
    if (event == nullptr) break;
    CO_TRY(area.state.apply(*event));
    ++area.sequence;
    area.end += length;
  }
  // A record that cannot be read ends the journal when it was the last one, torn by a power loss;
  // one with a successor was whole once, and without it everything after it would be lost in
  // silence.
  const bool is_missing = CO_TRY(co_await has_later_record(
      offset + area.end, offset + journal_area_size, area.generation, area.sequence + 1));
  if (is_missing) {
    co_return failure(
        damaged(fmt::format("record {} of the journal cannot be read", area.sequence + 1)));
  }
  co_return std::move(area);
}

/// Whether a whole record of the generation with a sequence above `sequence` begins behind the
/// place at `offset`, as far as the largest record that can have been there reaches.
Task<Result<bool>> MapFile::has_later_record(std::uint64_t offset, std::uint64_t area_end,
                                             std::uint64_t generation, std::uint64_t sequence) {
  if (offset >= area_end) co_return false;
  const std::uint64_t end = std::min(area_end, offset + event_record_size_max + sector_size);
  const AlignedBuffer sectors = AlignedBuffer::zeroed(end - offset);
  const std::size_t got = CO_TRY(co_await file_->read(offset, sectors.bytes()));
  for (std::uint64_t at = sector_size; at < got; at += sector_size) {
    const Bytes rest = sectors.bytes().subspan(at);
    const auto head = peek_record(superblock_.volume, rest);
    if (!head || head->generation != generation || head->sequence <= sequence) continue;
    std::uint64_t length = 0;
    const auto record = CO_TRY(co_await read_record(offset + at, area_end - offset - at, &length));
    if (record) co_return true;
  }
  co_return false;
}

Task<Result<std::optional<JournalRecord>>> MapFile::read_record(std::uint64_t offset,
                                                                std::uint64_t area_left,
                                                                std::uint64_t* padded_length) {
  AlignedBuffer sector(sector_size);
  const std::size_t got = CO_TRY(co_await file_->read(offset, sector.bytes()));
  const auto head = peek_record(superblock_.volume, sector.first(got));
  if (!head || head->length > area_left) co_return std::optional<JournalRecord>{};
  *padded_length = round_up(head->length, sector_size);
  AlignedBuffer whole(*padded_length);
  const std::size_t got_whole = CO_TRY(co_await file_->read(offset, whole.bytes()));
  auto record = decode_record(superblock_.volume, whole.first(got_whole));
  if (record) co_return std::optional(std::move(*record));
  if (record.error().kind() == ErrorKind::corrupt) co_return std::optional<JournalRecord>{};
  co_return failure(std::move(record).error());
}

Result<void> MapFile::usable() const {
  if (!failed_) return {};
  return failure(
      ErrorKind::io_error,
      fmt::format("a sync of '{}' has failed; close the volume and open it again", file_->name()));
}

Task<Result<void>> MapFile::write_aligned(std::uint64_t offset, Bytes bytes) {
  CHECK(bytes.size() % sector_size == 0);
  AlignedBuffer copy(bytes.size());
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  co_return co_await file_->write(offset, copy.bytes());
}

Task<Result<void>> MapFile::append(JournalEvent event) {
  const auto guard = co_await journal_mutex_.lock();
  CO_TRY(usable());
  auto record = encode_event(superblock_.volume, generation_, sequence_ + 1, event);
  if (record.size() > event_record_size_max) {
    co_return failure(ErrorKind::limit, fmt::format("a record of {} bytes is above the limit of {}",
                                                    record.size(), event_record_size_max));
  }
  if (journal_end_ + record.size() > journal_area_size) {
    CO_TRY(co_await compact());
    record = encode_event(superblock_.volume, generation_, sequence_ + 1, event);
  }
  const std::uint64_t offset = area_offset(area_) + journal_end_;
  if (auto written = co_await write_aligned(offset, record); !written) {
    // A full disk has taken nothing, and the next record goes to the same place. Any other failure
    // leaves open what the next reader will find there, so this was the last record until the next
    // open.
    if (written.error().kind() != ErrorKind::no_space) failed_ = true;
    co_return written;
  }
  CO_TRY(co_await sync());
  ++sequence_;
  journal_end_ += record.size();
  co_return state_.apply(event);
}

Task<Result<void>> MapFile::compact() {
  const auto record = encode_state(superblock_.volume, generation_ + 1, state_);
  if (record.size() > journal_area_size / 2) {
    co_return failure(ErrorKind::limit,
                      fmt::format("the volume's {} reference points fill its journal; delete some",
                                  state_.refpoints.size()));
  }
  const unsigned other = 1 - area_;
  CO_TRY(co_await write_aligned(area_offset(other), record));
  CO_TRY(co_await sync());
  area_ = other;
  ++generation_;
  sequence_ = 0;
  journal_end_ = record.size();
  co_return Result<void>{};
}

Task<Result<IntentRing>> MapFile::read_intents() {
  IntentRing ring;
  AlignedBuffer slot_bytes = AlignedBuffer::zeroed(intent_slot_size);
  for (std::uint64_t slot = 0; slot < intent_slot_count; ++slot) {
    const std::size_t got = CO_TRY(
        co_await file_->read(intent_ring_offset + slot * intent_slot_size, slot_bytes.bytes()));
    ring.add(superblock_.volume, slot_bytes.first(got));
  }
  co_return ring;
}

Task<Result<void>> MapFile::write_intents(IntentRecord record) {
  CO_TRY(usable());
  const std::size_t length = intent_record_size(record.regions.size());
  encode_intents(superblock_.volume, record, intent_buffer_.first(length));
  const std::uint64_t slot = record.sequence % intent_slot_count;
  CO_TRY(co_await file_->write(intent_ring_offset + slot * intent_slot_size,
                               intent_buffer_.first(length)));
  co_return co_await sync();
}

Task<Result<std::vector<MapFile::LoadedPage>>> MapFile::read_pages(std::uint64_t first,
                                                                   std::size_t count,
                                                                   std::span<MapWord> words) {
  AlignedBuffer slots = AlignedBuffer::zeroed(2 * count * page_size);
  CO_TRY(co_await file_->read(page_slot_offset(first, 0), slots.bytes()));
  std::vector<LoadedPage> loaded(count);
  std::vector<MapWord> candidate(words_per_page);
  for (std::size_t i = 0; i < count; ++i) {
    const std::span<MapWord> page_words = words.subspan(i * words_per_page, words_per_page);
    LoadedPage& page = loaded[i];
    unsigned whole = 0;
    unsigned zeros = 0;
    for (unsigned slot = 0; slot < 2; ++slot) {
      const Bytes sector = slots.bytes().subspan((2 * i + slot) * page_size, page_size);
      const auto header = decode_page(superblock_.volume, first + i, sector, candidate);
      if (!header || page_slot_of(header->sequence) != slot) {
        if (is_zero(sector)) ++zeros;
        continue;
      }
      ++whole;
      if (header->sequence <= page.sequence) continue;
      page.sequence = header->sequence;
      std::ranges::copy(candidate, page_words.begin());
    }
    // A torn slot beside a whole one is what a power loss leaves. A page whose first write was torn
    // has a zero slot beside it, and never had an older version. Both slots damaged is neither.
    page.damaged = whole == 0 && zeros == 0;
    page.doubtful = whole < 2 && zeros < 2 && !(page.sequence == 1 && zeros == 1);
  }
  co_return loaded;
}

Result<std::uint64_t> MapFile::next_written_page(std::uint64_t page, std::uint64_t page_count) {
  const std::uint64_t data = TRY(file_->next_data(page_slot_offset(page, 0)));
  const std::uint64_t size = TRY(file_->size());
  if (data >= size) return page_count;
  return std::min(page_count, std::max(page, (data - pages_offset) / (2 * page_size)));
}

Task<Result<void>> MapFile::write_page(std::uint64_t page, std::uint64_t sequence, Bytes encoded) {
  CO_TRY(usable());
  co_return co_await file_->write(page_slot_offset(page, page_slot_of(sequence)), encoded);
}

Task<Result<void>> MapFile::truncate_pages(std::uint64_t page_count) {
  CO_TRY(usable());
  const std::uint64_t end = page_slot_offset(page_count, 0);
  const std::uint64_t present = CO_TRY(file_->size());
  if (present > end) CO_TRY(file_->truncate(end));
  co_return co_await sync();
}

Task<Result<void>> MapFile::fill_holes() {
  const AlignedBuffer zeros = AlignedBuffer::zeroed(intent_slot_size);
  for (const auto& [begin, length] : allocated_ranges) {
    const std::uint64_t end = begin + length;
    for (std::uint64_t at = begin; at < end;) {
      const std::uint64_t size = CO_TRY(file_->size());
      const std::uint64_t hole = at < size ? CO_TRY(file_->next_hole(at)) : at;
      const std::uint64_t data = hole < size ? CO_TRY(file_->next_data(hole)) : end;
      // A file system may have holes that are smaller than what is written at once.
      const std::uint64_t from = round_up(hole, sector_size);
      const std::uint64_t to = data >= size ? end : round_down(std::min(data, end), sector_size);
      for (std::uint64_t offset = from; offset < std::min(to, end); offset += zeros.size()) {
        CO_TRY(co_await file_->write(offset, zeros.first(std::min<std::uint64_t>(
                                                 zeros.size(), std::min(to, end) - offset))));
      }
      at = std::max(at + 1, data >= size ? end : data);
    }
  }
  co_return Result<void>{};
}

Task<Result<void>> MapFile::sync() {
  CO_TRY(usable());
  auto synced = co_await file_->sync();
  if (!synced) {
    failed_ = true;
    co_return synced;
  }
  // The kernel reports lost pages to one sync only: one that was under way beside it succeeds, and
  // lies.
  co_return usable();
}

}  // namespace berth::disk
