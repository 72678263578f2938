#include "disk/live_map.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace berth::disk {
namespace {

constexpr std::uint64_t live_magic = 0x31564c4854524542;  // "BERTHLV1"
constexpr std::size_t boot_id_size = 48;

std::string name_of(const Id128& volume, std::uint64_t page_count) {
  return fmt::format("{}.{}", volume.to_string(), page_count);
}

std::uint64_t words_offset(std::uint64_t page_count) {
  return sector_size + round_up(page_count * sizeof(LivePage), sector_size);
}

std::uint64_t size_for(std::uint64_t page_count) {
  return words_offset(page_count) +
         round_up(page_count * words_per_page * sizeof(MapWord), sector_size);
}

}  // namespace

struct LiveMap::Header {
  std::uint64_t magic;  // stored last: a half-made map has none
  char boot_id[boot_id_size];
  Id128 volume;
  Id128 session;
  std::uint32_t block_size;
  Epoch epoch;
  std::uint64_t page_count;
  std::uint64_t successor;
};

LiveMap::Header& LiveMap::header() const {
  return *reinterpret_cast<Header*>(memory_->bytes().data());
}

void LiveMap::locate(std::uint64_t page_count) {
  std::byte* base = memory_->bytes().data();
  pages_ = {reinterpret_cast<LivePage*>(base + sector_size), page_count};
  words_ = {reinterpret_cast<MapWord*>(base + words_offset(page_count)),
            page_count * words_per_page};
}

Result<LiveMap> LiveMap::create(SharedMemoryStore& store, const Key& key, Epoch epoch) {
  LiveMap map(TRY(store.create(name_of(key.volume, key.page_count), size_for(key.page_count))));
  map.locate(key.page_count);
  Header& header = map.header();
  const std::string boot = store.boot_id();
  std::memset(header.boot_id, 0, boot_id_size);
  std::memcpy(header.boot_id, boot.data(), std::min(boot.size(), boot_id_size - 1));
  header.volume = key.volume;
  header.session = key.session;
  header.block_size = key.block_size;
  header.epoch = epoch;
  header.page_count = key.page_count;
  store_last(header.magic, live_magic);
  return map;
}

Result<LiveMap> LiveMap::adopt(SharedMemoryStore& store, const Key& key) {
  LiveMap map(TRY(store.open(name_of(key.volume, key.page_count))));
  const Header& header = map.header();
  const std::string boot = store.boot_id();
  if (map.memory_->bytes().size() < size_for(key.page_count) || header.magic != live_magic ||
      std::strncmp(header.boot_id, boot.c_str(), boot_id_size - 1) != 0 ||
      header.volume != key.volume || header.session != key.session ||
      header.block_size != key.block_size || header.page_count != key.page_count) {
    return failure(ErrorKind::not_found,
                   "the live map there is of another volume, session or boot");
  }
  map.locate(key.page_count);
  // What a flush of the dead process was writing may not be there.
  for (std::uint64_t index = 0; index < key.page_count; ++index) {
    if (map.pages_[index].dirt != clean_page) map.relist(index);
  }
  return map;
}

Result<void> LiveMap::remove(SharedMemoryStore& store, const Id128& volume,
                             std::uint64_t page_count) {
  return store.remove(name_of(volume, page_count));
}

void LiveMap::mark_dirty(std::uint64_t index, std::uint8_t dirt) {
  LivePage& page = pages_[index];
  if ((dirt & ~page.dirt & dirty_epochs) != 0) with_dirty_epochs_.push_back(index);
  if ((dirt & ~page.dirt & dirty_states) != 0) with_dirty_states_.push_back(index);
  page.dirt = static_cast<std::uint8_t>(page.dirt | dirt);
}

void LiveMap::begin_capture(std::uint64_t index) {
  LivePage& page = pages_[index];
  const auto both = static_cast<std::uint8_t>(page.dirt | page.dirt << capturing_shift);
  store_last(page.dirt, static_cast<std::uint8_t>(both & capturing_dirt));
}

void LiveMap::end_capture(std::uint64_t index) {
  LivePage& page = pages_[index];
  ++page.sequence;
  // With the old sequence and no dirt, the next flush would write over the only whole version.
  store_last(page.dirt, static_cast<std::uint8_t>(page.dirt & ~capturing_dirt));
}

void LiveMap::relist(std::uint64_t index) {
  LivePage& page = pages_[index];
  const auto dirt = static_cast<std::uint8_t>((page.dirt | page.dirt >> capturing_shift) &
                                              (dirty_epochs | dirty_states));
  if ((dirt & dirty_epochs) != 0) with_dirty_epochs_.push_back(index);
  if ((dirt & dirty_states) != 0) with_dirty_states_.push_back(index);
  store_last(page.dirt, dirt);
}

std::uint64_t LiveMap::page_versions() const {
  std::uint64_t sum = 0;
  for (const LivePage& page : pages_) sum += page.sequence;
  return sum;
}

std::vector<std::uint64_t> LiveMap::take_dirty(std::uint8_t dirt) {
  std::vector<std::uint64_t> taken;
  const auto take_from = [&](std::vector<std::uint64_t>& list, std::uint8_t kind) {
    if ((dirt & kind) == 0) return;
    for (const std::uint64_t index : list) {
      if ((pages_[index].dirt & kind) != 0) taken.push_back(index);
    }
    list.clear();
  };
  take_from(with_dirty_epochs_, dirty_epochs);
  take_from(with_dirty_states_, dirty_states);
  std::ranges::sort(taken);
  const auto twice = std::ranges::unique(taken);
  taken.erase(twice.begin(), twice.end());
  return taken;
}

void LiveMap::set_session(const Id128& session) { header().session = session; }
std::uint64_t LiveMap::successor() const { return header().successor; }
void LiveMap::set_successor(std::uint64_t page_count) {
  store_last(header().successor, page_count);
}
Epoch LiveMap::epoch() const { return header().epoch; }
void LiveMap::set_epoch(Epoch epoch) { header().epoch = epoch; }

}  // namespace berth::disk
