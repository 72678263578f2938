#include "disk_model.h"

#include <algorithm>

#include <fmt/format.h>

namespace berth::sim {
namespace {

std::uint64_t word_of(std::uint64_t sector, Value value) {
  return value << 24 | (sector & 0xffffff);
}

}  // namespace

void fill_sector(std::uint64_t sector, Value value, MutableBytes into) {
  const std::uint64_t word = value == zeros ? 0 : word_of(sector, value);
  for (std::size_t i = 0; i < model_sector; i += sizeof word)
    store_le<std::uint64_t>(into.data() + i, word);
}

Value read_sector(std::uint64_t sector, Bytes content) {
  const auto word = load_le<std::uint64_t>(content.data());
  for (std::size_t i = 0; i < model_sector; i += sizeof word) {
    if (load_le<std::uint64_t>(content.data() + i) != word) return garbage;
  }
  if (word == 0) return zeros;
  const Value value = word >> 24;
  return word == word_of(sector, value) ? value : garbage;
}

DiskModel::DiskModel(std::vector<std::uint64_t> sectors, Value initial)
    : sectors_(std::move(sectors)) {
  for (const std::uint64_t sector : sectors_) {
    histories_[sector].push_back({.value = initial, .submitted = 0, .acknowledged = 0});
  }
}

void DiskModel::submit(std::uint64_t first, std::uint64_t count, Value value, Tick at,
                       bool certain) {
  for (auto it = histories_.lower_bound(first); it != histories_.end() && it->first < first + count;
       ++it) {
    it->second.push_back(
        {.value = value, .submitted = at, .acknowledged = never, .certain = certain});
  }
}

void DiskModel::acknowledge(std::uint64_t first, std::uint64_t count, Tick submitted, Tick at) {
  for (auto it = histories_.lower_bound(first); it != histories_.end() && it->first < first + count;
       ++it) {
    for (auto version = it->second.rbegin(); version != it->second.rend(); ++version) {
      if (version->submitted != submitted) continue;
      version->acknowledged = at;
      break;
    }
  }
}

bool DiskModel::is_possible(std::uint64_t sector, Value value, Tick start, Tick end) const {
  const auto found = histories_.find(sector);
  if (found == histories_.end()) return true;
  const auto& versions = found->second;
  return std::ranges::any_of(versions, [&](const Version& candidate) {
    if (candidate.value != value || candidate.submitted > end) return false;
    return std::ranges::none_of(versions, [&](const Version& later) {
      return later.certain && later.submitted > candidate.acknowledged &&
             later.acknowledged <= start;
    });
  });
}

Possible DiskModel::possible(std::uint64_t sector, Tick start, Tick end) const {
  Possible values;
  for (const Version& version : histories_.at(sector)) {
    if (std::ranges::find(values, version.value) == values.end() &&
        is_possible(sector, version.value, start, end)) {
      values.push_back(version.value);
    }
  }
  return values;
}

void DiskModel::observe(std::uint64_t sector, Value value, Tick at, bool durable) {
  auto& versions = histories_.at(sector);
  if (durable) versions.clear();
  // What a dead process had in flight has happened by now, or never will.
  for (Version& version : versions) version.acknowledged = std::min(version.acknowledged, at - 1);
  versions.push_back({.value = value, .submitted = at, .acknowledged = at});
}

std::string DiskModel::describe(std::uint64_t sector) const {
  std::string text;
  for (const Version& version : histories_.at(sector)) {
    text += fmt::format(
        "{}value {} submitted {} {}{}", text.empty() ? "" : ", ", version.value, version.submitted,
        version.acknowledged == never ? "in flight"
                                      : fmt::format("acknowledged {}", version.acknowledged),
        version.certain ? "" : " (discard)");
  }
  return text;
}

}  // namespace berth::sim
