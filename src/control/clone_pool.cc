#include "control/clone_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "control/container_creation.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

constexpr Milliseconds rest{200};  // of somebody who makes clones one after the other
constexpr Milliseconds making_patience{10'000};

}  // namespace

ClonePool::ClonePool(Executor executor, Containers& containers, Templates& templates,
                     EventLog& events)
    : executor_(executor),
      containers_(containers),
      templates_(templates),
      events_(events),
      changed_(std::move(executor)) {}

Async<void> ClonePool::take_over() {
  co_await containers_.discard_left_waiting();
  for (const container::TemplateRecord& record : co_await templates_.list())
    fill(record.recipe.name);
}

std::size_t ClonePool::size(const std::string& name) const {
  const auto found = clones_.find(name);
  return found == clones_.end() ? 0 : found->second.size();
}

/// It still waits, and is of what its template is now.
bool ClonePool::is_good(const Clone& clone, const Id128& current) const {
  return clone.of == current && containers_.is_on(clone.waiting.place);
}

std::optional<Containers::Waiting> ClonePool::take(const container::TemplateRecord& of) {
  std::vector<Clone>& clones = clones_[of.recipe.name];
  const auto found =
      std::ranges::find_if(clones, [&](const Clone& clone) { return is_good(clone, of.id); });
  if (found == clones.end()) return std::nullopt;
  Containers::Waiting waiting = std::move(found->waiting);
  clones.erase(found);
  return waiting;
}

// --- Filling.

void ClonePool::fill(const std::string& name) {
  wanted_.insert(name);
  if (quitting_ || !filling_.insert(name).second) return;
  start(executor_, keep_full(name));
}

Async<void> ClonePool::keep_full(std::string name) {
  bool goes_on = true;
  while (!quitting_ && (goes_on || wanted_.contains(name))) {
    wanted_.erase(name);
    while (pauses_ > 0 && !quitting_) co_await changed_.wait();
    co_await changed_.wait_for(rest);
    if (pauses_ > 0) {
      goes_on = true;
    } else if (!quitting_) {
      goes_on = co_await add_one(name);
    }
  }
  filling_.erase(name);
  changed_.notify();
}

/// False: it is full, or cannot be filled now.
Async<bool> ClonePool::add_one(std::string name) {
  const auto known = co_await templates_.find(name);
  if (!known) {
    co_await empty(name);
    co_return false;
  }
  co_await drop_stale(name, known->id);
  if (size(name) >= known->recipe.pool) co_return false;
  auto use = co_await templates_.use(name);
  auto made =
      use ? co_await containers_.prepare(clone_of(use->record.recipe), templates_.start_of(*use))
          : Result<Containers::Waiting>(failure(use.error()));
  if (!made) {
    events_.publish("pool_not_filled", {}, fmt::format("{}: {}", name, made.error().message()));
    co_return false;
  }
  if (quitting_) {
    co_await containers_.discard(*std::move(made));
    co_return false;
  }
  clones_[name].push_back({.waiting = *std::move(made), .of = use->record.id, .pin = use->pin});
  co_return true;
}

/// Those of what the template was before, and those that have ended.
Async<void> ClonePool::drop_stale(std::string name, Id128 current) {
  std::vector<Clone> stale;
  std::vector<Clone>& clones = clones_[name];
  for (Clone& clone : std::exchange(clones, {})) {
    (is_good(clone, current) ? clones : stale).push_back(std::move(clone));
  }
  for (Clone& clone : stale) co_await containers_.discard(std::move(clone.waiting));
}

Async<void> ClonePool::empty(std::string name) {
  const auto found = clones_.find(name);
  if (found == clones_.end()) co_return;
  std::vector<Clone> clones = std::move(found->second);
  clones_.erase(found);
  for (Clone& clone : clones) co_await containers_.discard(clone.waiting);
}

Async<void> ClonePool::quit() {
  quitting_ = true;
  changed_.notify();
  while (!clones_.empty()) co_await empty(clones_.begin()->first);
  // One that is being made is not left to the next daemon.
  const auto until = std::chrono::steady_clock::now() + making_patience;
  while (!filling_.empty() && std::chrono::steady_clock::now() < until)
    co_await changed_.wait_for(rest);
}

// --- Beside the machines.

Async<bool> ClonePool::yield_memory() {
  bool had_any = false;
  while (!clones_.empty()) {
    had_any = had_any || !clones_.begin()->second.empty();
    co_await empty(clones_.begin()->first);
  }
  co_return had_any;
}

}  // namespace berth::control
