#include "disk/intent_log.h"

#include <algorithm>
#include <utility>

namespace berth::disk {

IntentLog::IntentLog(Loop& loop, Gate& tasks, MapFile& map, std::size_t hot_regions_max,
                     std::function<void()> request_cooling)
    : tasks_(tasks),
      map_(map),
      hot_max_(std::clamp<std::size_t>(hot_regions_max, 4 * announce_max, intent_regions_max)),
      request_cooling_(std::move(request_cooling)),
      changed_(loop) {}

void IntentLog::set_region_count(std::uint64_t count) {
  std::erase_if(hot_, [this, count](const Entry& entry) {
    if (entry.region < count) return false;
    if (is_current(entry)) --hot_count_;
    return true;
  });
  std::erase_if(pending_, [count](std::uint32_t region) { return region >= count; });
  hot_epoch_.resize(count);
  pending_epoch_.resize(count);
  in_flight_.resize(count);
  activation_.resize(count);
  touched_.resize(count);
}

void IntentLog::restore(const IntentRecord& newest) {
  sequence_ = newest.sequence;
  for (const HotRegion& region : newest.regions) {
    if (region.region < hot_epoch_.size() && hot_epoch_[region.region] == 0)
      make_hot(region.region, region.epoch);
  }
}

void IntentLog::make_hot(std::uint32_t region, Epoch epoch) {
  if (hot_epoch_[region] == 0) ++hot_count_;
  hot_epoch_[region] = epoch;
  activation_[region] = ++activations_;
  hot_.push_back({.region = region, .activation = activations_});
}

Task<Result<void>> IntentLog::announce(std::uint64_t first, std::uint64_t last, Epoch epoch) {
  CHECK(last - first < announce_max);
  bool all_hot = true;
  for (std::uint64_t region = first; region <= last; ++region) {
    if (is_hot(region, epoch)) continue;
    all_hot = false;
    if (pending_epoch_[region] == 0) pending_.push_back(static_cast<std::uint32_t>(region));
    pending_epoch_[region] = std::max(pending_epoch_[region], epoch);
  }
  if (all_hot) co_return Result<void>{};
  if (!committing_) {
    committing_ = true;
    tasks_.spawn(commit_loop());
  }
  // Until nothing of it is pending any more: hot, or hot and cooled again meanwhile.
  const auto is_pending = [this, first, last] {
    return std::any_of(pending_epoch_.begin() + static_cast<std::ptrdiff_t>(first),
                       pending_epoch_.begin() + static_cast<std::ptrdiff_t>(last) + 1,
                       [](Epoch wanted) { return wanted != 0; });
  };
  const std::uint64_t refusals_before = refusals_;
  while (!error_ && refusals_ == refusals_before && is_pending()) co_await changed_.wait();
  if (refusals_ != refusals_before && refusal_) co_return failure(Error(*refusal_));
  if (error_) co_return failure(Error(*error_));
  co_return Result<void>{};
}

bool IntentLog::pending_fits() const {
  const auto cold = std::ranges::count_if(
      pending_, [this](std::uint32_t region) { return hot_epoch_[region] == 0; });
  return hot_count_ + static_cast<std::size_t>(cold) <= hot_max_;
}

IntentRecord IntentLog::next_record() const {
  IntentRecord record{.sequence = sequence_ + 1, .epoch = 0, .regions = {}};
  record.regions.reserve(hot_count_ + pending_.size());
  for (const std::uint32_t region : pending_) {
    record.regions.push_back({.region = region, .epoch = pending_epoch_[region]});
  }
  for (const Entry& entry : hot_) {
    if (!is_current(entry) || pending_epoch_[entry.region] != 0) continue;
    record.regions.push_back({.region = entry.region, .epoch = hot_epoch_[entry.region]});
  }
  for (const HotRegion& region : record.regions)
    record.epoch = std::max(record.epoch, region.epoch);
  return record;
}

Task<> IntentLog::commit_loop() {
  while (!pending_.empty() && !error_) {
    if (!pending_fits()) {
      request_cooling_();
      co_await changed_.wait();
      continue;
    }
    // The pending entries stay in the list until they are durable, so that nobody announces them
    // twice.
    IntentRecord record = next_record();
    const std::vector<HotRegion> batch(
        record.regions.begin(),
        record.regions.begin() + static_cast<std::ptrdiff_t>(pending_.size()));
    auto written = co_await map_.write_intents(std::move(record));
    if (!written) {
      fail(std::move(written).error());
      break;
    }
    ++sequence_;
    for (const HotRegion& region : batch) {
      make_hot(region.region, region.epoch);
      // A newer epoch that was asked for meanwhile stays for the next commit.
      if (pending_epoch_[region.region] == region.epoch) pending_epoch_[region.region] = 0;
    }
    std::erase_if(pending_, [this](std::uint32_t region) { return pending_epoch_[region] == 0; });
    if (hot_.size() > 2 * hot_max_) {
      std::erase_if(hot_, [this](const Entry& entry) { return !is_current(entry); });
    }
    changed_.notify_all();
    if (hot_count_ > hot_max_ / 4 * 3) request_cooling_();
  }
  committing_ = false;
}

void IntentLog::cool(std::uint64_t captured, std::size_t keep) {
  std::erase_if(hot_, [this, captured, keep](const Entry& entry) {
    if (!is_current(entry)) return true;
    if (hot_count_ <= keep || entry.activation > captured || touched_[entry.region] > captured ||
        in_flight_[entry.region] != 0) {
      return false;
    }
    hot_epoch_[entry.region] = 0;
    --hot_count_;
    return true;
  });
  changed_.notify_all();
}

void IntentLog::fail(Error error) {
  if (!error_) error_ = std::move(error);
  changed_.notify_all();
}

void IntentLog::refuse_pending(Error error) {
  // A commit under way keeps its list; only one that waits for room has nothing on its way.
  if (pending_fits()) return;
  for (const std::uint32_t region : pending_) pending_epoch_[region] = 0;
  pending_.clear();
  refusal_ = std::move(error);
  ++refusals_;
  changed_.notify_all();
}

Epoch IntentLog::newest_hot_epoch() const {
  Epoch newest = 0;
  for (const Entry& entry : hot_) {
    if (is_current(entry)) newest = std::max(newest, hot_epoch_[entry.region]);
  }
  return newest;
}

}  // namespace berth::disk
