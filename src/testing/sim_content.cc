#include "testing/sim_content.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/units.h"

namespace berth {
namespace {

constexpr std::size_t versions_max = 32;  // of one page; beyond it the oldest becomes durable

bool in(SimSectors sectors, std::size_t sector) { return (sectors >> sector & 1U) != 0; }

SimPage copy_of(const SimPage& page) {
  SimPage copy = SimPage::uninitialised();
  if (page) {
    std::memcpy(copy.data(), page.data(), sim_page_size);
  } else {
    std::memset(copy.data(), 0, sim_page_size);
  }
  return copy;
}

void copy_bytes(const SimPage& to, const SimPage& from, std::size_t begin, std::size_t end) {
  if (from) {
    std::memcpy(to.data() + begin, from.data() + begin, end - begin);
  } else {
    std::memset(to.data() + begin, 0, end - begin);
  }
}

/// `base` with the bytes begin..end of `source` in the given sectors.
SimPage merged(const SimPage& base, const SimPage& source, std::size_t begin, std::size_t end,
               SimSectors sectors) {
  if (begin == 0 && end == sim_page_size && sectors == sim_all_sectors) return source;
  SimPage page = copy_of(base);
  for (std::size_t i = 0; i < sim_page_sectors; ++i) {
    if (!in(sectors, i)) continue;
    const std::size_t from = std::max(begin, i * sim_sector_size);
    const std::size_t to = std::min(end, (i + 1) * sim_sector_size);
    if (from < to) copy_bytes(page, source, from, to);
  }
  return page;
}

bool spared(std::uint64_t operation, std::uint64_t salt) {
  return (mix64(operation ^ salt) & 1U) != 0;
}

}  // namespace

SimSurvival SimSurvival::choose(SimRandom& random, std::uint64_t sequence) {
  SimSurvival survival;
  survival.style = static_cast<Style>(random.below(5));
  survival.salt = random.next();
  // The last changes are the interesting ones.
  const std::uint64_t reach = std::min<std::uint64_t>(sequence, random.one_in(2) ? 16 : 256);
  survival.sequence_max = sequence - random.below(reach + 1);
  return survival;
}

SimContent::SimContent(const SimContent& other, SimDisk& disk)
    : disk_(disk),
      dirty_pages_(other.dirty_pages_),
      resizes_(other.resizes_),
      size_(other.size_),
      durable_size_(other.durable_size_),
      pages_used_(other.pages_used_) {
  for (const auto& [index, chunk] : other.chunks_) {
    chunks_.emplace(index, std::make_unique<Chunk>(*chunk));
  }
  disk_.pages_used += pages_used_;
}

const SimContent::Slot* SimContent::find(std::uint64_t page) const {
  const std::uint64_t index = page / chunk_pages;
  if (index != cached_index_) {
    const auto found = chunks_.find(index);
    if (found == chunks_.end()) return nullptr;
    cached_index_ = index;
    cached_chunk_ = found->second.get();
  }
  return &(*cached_chunk_)[page % chunk_pages];
}

SimContent::Slot& SimContent::slot(std::uint64_t page) {
  const std::uint64_t index = page / chunk_pages;
  if (index != cached_index_) {
    auto& chunk = chunks_[index];
    if (!chunk) chunk = std::make_unique<Chunk>();
    cached_index_ = index;
    cached_chunk_ = chunk.get();
  }
  return (*cached_chunk_)[page % chunk_pages];
}

template <typename Visit>
void SimContent::for_each_slot(std::uint64_t first_page, std::uint64_t end_page, Visit visit) {
  for (auto it = chunks_.lower_bound(first_page / chunk_pages); it != chunks_.end(); ++it) {
    for (std::size_t i = 0; i < chunk_pages; ++i) {
      const std::uint64_t page = it->first * chunk_pages + i;
      if (page >= end_page) return;
      if (page >= first_page) visit(page, (*it->second)[i]);
    }
  }
}

bool SimContent::has_page(std::uint64_t page) const {
  const Slot* found = find(page);
  return found != nullptr && found->current;
}

std::uint64_t SimContent::next_data(std::uint64_t offset) const {
  const std::uint64_t first = offset / sim_page_size;
  for (auto it = chunks_.lower_bound(first / chunk_pages); it != chunks_.end(); ++it) {
    for (std::size_t i = 0; i < chunk_pages; ++i) {
      const std::uint64_t page = it->first * chunk_pages + i;
      if (page < first || !(*it->second)[i].current) continue;
      return std::min(std::max(offset, page * sim_page_size), size_);
    }
  }
  return size_;
}

std::uint64_t SimContent::next_hole(std::uint64_t offset) const {
  std::uint64_t page = offset / sim_page_size;
  while (page * sim_page_size < size_ && has_page(page)) ++page;
  return std::min(std::max(offset, page * sim_page_size), size_);
}

namespace {

template <typename PageAt>
void read_pages(std::uint64_t offset, MutableBytes into, PageAt page_at) {
  while (!into.empty()) {
    const std::size_t begin = offset % sim_page_size;
    const std::size_t length = std::min(into.size(), sim_page_size - begin);
    if (const SimPage* page = page_at(offset / sim_page_size); page != nullptr && *page) {
      std::memcpy(into.data(), page->data() + begin, length);
    } else {
      std::memset(into.data(), 0, length);
    }
    offset += length;
    into = into.subspan(length);
  }
}

}  // namespace

void SimContent::read(std::uint64_t offset, MutableBytes into) const {
  read_pages(offset, into, [&](std::uint64_t page) {
    const Slot* found = find(page);
    return found == nullptr ? nullptr : &found->current;
  });
}

void SimContent::read_durable(std::uint64_t offset, MutableBytes into) const {
  read_pages(offset, into, [&](std::uint64_t page) {
    const Slot* found = find(page);
    return found == nullptr ? nullptr : &found->durable;
  });
}

void SimContent::set_current(Slot& slot, SimPage page) {
  if (page && !slot.current) {
    ++pages_used_;
    ++disk_.pages_used;
  } else if (!page && slot.current) {
    --pages_used_;
    --disk_.pages_used;
  }
  slot.current = std::move(page);
}

void SimContent::add_version(std::uint64_t page, Slot& slot, SimSectors sectors,
                             std::uint64_t operation) {
  slot.versions.push_back({++disk_.sequence, operation, slot.current, sectors});
  slot.stranded &= static_cast<SimSectors>(~sectors);
  if (slot.versions.size() > versions_max) make_durable(slot, 1);
  if (!slot.listed) {
    slot.listed = true;
    dirty_pages_.push_back(page);
  }
}

void SimContent::write(const Piece& piece, const SimPage& source) {
  Slot& target = slot(piece.page);
  set_current(target, merged(target.current, source, piece.begin, piece.end, piece.sectors));
  add_version(piece.page, target, piece.sectors, piece.operation);
  const auto last = sim_page_sectors - static_cast<std::size_t>(std::countl_zero(piece.sectors));
  const std::uint64_t end =
      piece.page * sim_page_size + std::min(piece.end, last * sim_sector_size);
  if (end > size_) resize(end, piece.operation);
}

void SimContent::clear_page(const Piece& piece) {
  const Slot* found = find(piece.page);
  if (found == nullptr || (!found->current && !found->durable && found->versions.empty())) return;
  Slot& target = slot(piece.page);
  // What is left of a page that is cleared in part is still a page; a hole stays one.
  if (target.current) {
    set_current(target, merged(target.current, nullptr, piece.begin, piece.end, piece.sectors));
  }
  add_version(piece.page, target, piece.sectors, piece.operation);
}

void SimContent::clear(std::uint64_t offset, std::uint64_t length, std::uint64_t operation,
                       SimRandom* chance_of) {
  const std::uint64_t end = offset + length;
  for_each_slot(
      offset / sim_page_size, divide_up(end, sim_page_size), [&](std::uint64_t page, Slot&) {
        if (chance_of != nullptr && chance_of->one_in(2)) return;
        const std::uint64_t start = page * sim_page_size;
        Piece piece{.page = page, .operation = operation};
        piece.begin = offset > start ? static_cast<std::size_t>(offset - start) : 0;
        piece.end =
            end - start < sim_page_size ? static_cast<std::size_t>(end - start) : sim_page_size;
        piece.sectors = sim_sectors_of(piece.begin, piece.end);
        clear_page(piece);
      });
}

void SimContent::copy_from(const SimContent& other, std::uint64_t operation) {
  for (const auto& [index, chunk] : other.chunks_) {
    for (std::size_t i = 0; i < chunk_pages; ++i) {
      if (!(*chunk)[i].current) continue;
      write({.page = index * chunk_pages + i, .operation = operation}, (*chunk)[i].current);
    }
  }
  truncate(other.size_, operation);
}

void SimContent::resize(std::uint64_t size, std::uint64_t operation) {
  size_ = size;
  resizes_.push_back({++disk_.sequence, operation, size});
}

void SimContent::truncate(std::uint64_t size, std::uint64_t operation) {
  if (size == size_) return;
  if (size < size_) {
    // Also what lies durably beyond the end that reads see.
    clear(size, UINT64_MAX - sim_page_size - size, operation);
  }
  resize(size, operation);
}

/// The first versions of a page become what is durable.
void SimContent::make_durable(Slot& slot, std::size_t version_count) {
  if (version_count == slot.versions.size() && slot.stranded == 0) {
    slot.durable = slot.current;
    slot.versions.clear();
    return;
  }
  for (std::size_t i = 0; i < version_count; ++i) {
    const Version& version = slot.versions[i];
    slot.durable = merged(slot.durable, version.page, 0, sim_page_size, version.sectors);
  }
  slot.versions.erase(slot.versions.begin(),
                      slot.versions.begin() + static_cast<std::ptrdiff_t>(version_count));
}

namespace {

template <typename Records>
std::size_t count_up_to(const Records& records, std::uint64_t sequence) {
  std::size_t count = 0;
  while (count < records.size() && records[count].sequence <= sequence) ++count;
  return count;
}

}  // namespace

void SimContent::sync(std::uint64_t sequence) {
  std::erase_if(dirty_pages_, [&](std::uint64_t page) {
    Slot& dirty = slot(page);
    if (const std::size_t count = count_up_to(dirty.versions, sequence); count != 0) {
      make_durable(dirty, count);
    }
    dirty.listed = !dirty.versions.empty() || dirty.stranded != 0;
    return !dirty.listed;
  });
  if (const std::size_t count = count_up_to(resizes_, sequence); count != 0) {
    durable_size_ = resizes_[count - 1].size;
    resizes_.erase(resizes_.begin(), resizes_.begin() + static_cast<std::ptrdiff_t>(count));
  }
}

void SimContent::fail_sync(std::uint64_t sequence, SimRandom& random, SimProbes& probes) {
  enum class Outcome : std::uint8_t { reverted, stranded, durable, any };
  const auto outcome_of_all = static_cast<Outcome>(random.below(4));
  std::erase_if(dirty_pages_, [&](std::uint64_t page) {
    Slot& dirty = slot(page);
    // A page that was dirtied again meanwhile stays dirty.
    if (dirty.versions.empty() || dirty.versions.back().sequence > sequence) return false;
    const Outcome outcome =
        outcome_of_all == Outcome::any ? static_cast<Outcome>(random.below(3)) : outcome_of_all;
    if (outcome == Outcome::reverted) {
      probes.hit("failed_sync_reverted_page");
      set_current(dirty, dirty.durable);
      dirty.stranded = 0;
    } else if (outcome == Outcome::stranded) {
      probes.hit("failed_sync_stranded_page");
      for (const Version& version : dirty.versions) dirty.stranded |= version.sectors;
    } else {
      probes.hit("failed_sync_wrote_page");
      make_durable(dirty, dirty.versions.size());
    }
    dirty.versions.clear();
    dirty.listed = dirty.stranded != 0;
    return !dirty.listed;
  });
}

SimPage SimContent::survivor(const Slot& slot, const SimSurvival& survival, SimRandom& random,
                             SimFates& fates) {
  // For each sector, how many of its versions count: the last one of those that do is what is left.
  std::array<const SimPage*, sim_page_sectors> winners{};
  bool uniform = true;
  for (std::size_t sector = 0; sector < sim_page_sectors; ++sector) {
    std::array<const Version*, versions_max> candidates{};
    std::size_t count = 0;
    for (const Version& version : slot.versions) {
      if (in(version.sectors, sector)) candidates[count++] = &version;
    }
    std::size_t kept = 0;  // candidates before this one are on the disk, or overwritten there
    switch (survival.style) {
      case SimSurvival::Style::nothing: break;
      case SimSurvival::Style::everything: kept = count; break;
      case SimSurvival::Style::sectors: kept = random.below(count + 1); break;
      case SimSurvival::Style::operations:
        kept = count;
        while (kept != 0 && !spared(candidates[kept - 1]->operation, survival.salt)) --kept;
        break;
      case SimSurvival::Style::prefix:
        while (kept < count && candidates[kept]->sequence <= survival.sequence_max) ++kept;
        break;
    }
    winners[sector] = kept == 0 ? &slot.durable : &candidates[kept - 1]->page;
    if (kept != 0) fates[candidates[kept - 1]->operation] |= sim_fate_survived;
    for (std::size_t i = kept; i < count; ++i) fates[candidates[i]->operation] |= sim_fate_lost;
    uniform = uniform && *winners[sector] == *winners[0];
  }
  if (uniform) return *winners[0];
  SimPage page = SimPage::uninitialised();
  for (std::size_t sector = 0; sector < sim_page_sectors; ++sector) {
    copy_bytes(page, *winners[sector], sector * sim_sector_size, (sector + 1) * sim_sector_size);
  }
  return page;
}

std::uint64_t SimContent::surviving_size(const SimSurvival& survival, SimRandom& random,
                                         SimFates& fates) const {
  std::size_t kept = 0;
  switch (survival.style) {
    case SimSurvival::Style::nothing: break;
    case SimSurvival::Style::everything: kept = resizes_.size(); break;
    case SimSurvival::Style::sectors: kept = random.below(resizes_.size() + 1); break;
    case SimSurvival::Style::operations:
      kept = resizes_.size();
      while (kept != 0 && !spared(resizes_[kept - 1].operation, survival.salt)) --kept;
      break;
    case SimSurvival::Style::prefix: kept = count_up_to(resizes_, survival.sequence_max); break;
  }
  for (std::size_t i = kept; i < resizes_.size(); ++i)
    fates[resizes_[i].operation] |= sim_fate_lost;
  return kept == 0 ? durable_size_ : resizes_[kept - 1].size;
}

void SimContent::power_loss(const SimSurvival& survival, SimRandom& random, SimFates& fates) {
  for (const std::uint64_t page : dirty_pages_) {
    Slot& dirty = slot(page);
    dirty.durable = survivor(dirty, survival, random, fates);
    set_current(dirty, dirty.durable);
    dirty.versions.clear();
    dirty.stranded = 0;
    dirty.listed = false;
  }
  dirty_pages_.clear();
  size_ = durable_size_ = surviving_size(survival, random, fates);
  resizes_.clear();
  cut_off(size_);
}

/// Nothing lies beyond the end, in either view.
void SimContent::cut_off(std::uint64_t size) {
  for_each_slot(size / sim_page_size, UINT64_MAX, [&](std::uint64_t page, Slot& last) {
    if (!last.current && !last.durable) return;
    const std::uint64_t start = page * sim_page_size;
    const std::size_t keep = start >= size ? 0 : static_cast<std::size_t>(size - start);
    if (keep == 0) {
      last.durable = nullptr;
    } else {
      last.durable = copy_of(last.durable);
      std::memset(last.durable.data() + keep, 0, sim_page_size - keep);
    }
    set_current(last, last.durable);
  });
}

void SimContent::corrupt(std::uint64_t offset, std::size_t length, SimRandom& random) {
  for (std::uint64_t at = offset; at < offset + length; ++at) {
    Slot& damaged = slot(at / sim_page_size);
    const auto flip = static_cast<std::byte>(1U << random.below(8));
    damaged.durable = copy_of(damaged.durable);
    set_current(damaged, copy_of(damaged.current));
    damaged.durable.data()[at % sim_page_size] ^= flip;
    damaged.current.data()[at % sim_page_size] ^= flip;
  }
}

}  // namespace berth
