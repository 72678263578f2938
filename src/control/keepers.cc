#include "control/keepers.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include <signal.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/log.h"
#include "control/keeper_failure.h"
#include "control/keeper_state.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"
#include "machine/layout.h"

namespace berth::control {
using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

namespace {

constexpr Milliseconds hello_timeout{10'000};
constexpr Milliseconds close_timeout{60'000};        // a clean close writes what is dirty
constexpr Milliseconds process_end_timeout{10'000};  // after it said that it has closed
constexpr Milliseconds connect_retry_first{2};
constexpr Milliseconds connect_retry_max{50};
constexpr Milliseconds restart_backoff_first{100};
constexpr Milliseconds restart_backoff_max{10'000};

std::string log_path(const machine::RunLayout& layout, const std::string& volume) {
  return layout.keeper(volume) + "/log";
}

Result<void> make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    return errno_failure(error.value(), fmt::format("cannot make the directory '{}'", path));
  return {};
}

}  // namespace

Keepers::Use::Use(std::shared_ptr<Keeper> keeper) : keeper_(std::move(keeper)) { ++keeper_->uses; }

Keepers::Use& Keepers::Use::operator=(Use&& other) noexcept {
  std::swap(keeper_, other.keeper_);
  return *this;
}

Keepers::Use::~Use() {
  if (!keeper_) return;
  --keeper_->uses;
  keeper_->last_used = SteadyClock::now();
}

Async<Result<Json>> Keepers::Use::call(std::string method, Json params, CallOptions options) {
  const auto connection = keeper_->connection;
  if (!connection) co_return failure(ErrorKind::disconnected, "the keeper is gone");
  co_return co_await connection->call(std::move(method), std::move(params), std::move(options));
}

int Keepers::Use::pid() const { return keeper_->process.pid; }

Keepers::Keepers(Executor executor, KeeperPolicy policy, const VolumeFacts& facts, EventLog& events)
    : executor_(std::move(executor)),
      policy_(std::move(policy)),
      facts_(facts),
      events_(events),
      quitting_changed_(executor_) {}

Keepers::~Keepers() = default;

void Keepers::quit() {
  quitting_ = true;
  quitting_changed_.notify();
  for (const auto& [volume, keeper] : keepers_) {
    if (keeper->connection) keeper->connection->close();
  }
}

std::shared_ptr<Keepers::Keeper> Keepers::keeper_of(const std::string& volume) {
  auto& keeper = keepers_[volume];
  if (!keeper) keeper = std::make_shared<Keeper>(executor_, volume);
  return keeper;
}

Async<Result<Keepers::Use>> Keepers::use(std::string volume) {
  CO_TRY(facts_.check_exists(volume));
  const auto keeper = keeper_of(volume);
  const auto lock = co_await keeper->mutex.lock();
  if (!keeper->is_open()) CO_TRY(co_await open(keeper));
  co_return Use(keeper);
}

/// With the keeper's mutex held: finds it running, or starts it.
Async<Result<void>> Keepers::open(std::shared_ptr<Keeper> keeper) {
  if (quitting_) co_return failure(ErrorKind::disconnected, "the daemon is ending");
  CO_TRY(facts_.check_exists(keeper->volume));
  keeper->opening = true;
  // Its end may not have been seen yet: then it is found here, and is no reason to give up.
  const bool was_alive = keeper->alive;
  auto opened = co_await attach(keeper);
  if (!opened && !keeper->alive &&
      (was_alive || opened.error().kind() == ErrorKind::disconnected)) {
    opened = co_await launch(keeper);
  }
  keeper->opening = false;
  keeper->last_used = SteadyClock::now();
  if (opened) {
    keeper->last_error.clear();
    co_return Result<void>();
  }
  keeper->last_error = opened.error().message();
  co_return failure(std::move(opened).error().with_context(
      fmt::format("cannot open volume '{}'", keeper->volume)));
}

Async<Result<void>> Keepers::launch(std::shared_ptr<Keeper> keeper) {
  // What it stands on is served by that volume's keeper: it comes first, and stays.
  if (const std::string backing = CO_TRY(facts_.backing_volume(keeper->volume)); !backing.empty()) {
    keeper->backing = CO_TRY(co_await use(backing));
  }
  const machine::RunLayout layout{policy_.run_dir};
  CO_TRY(make_directory(layout.keeper(keeper->volume)));
  KeeperLaunch how{.program = policy_.program,
                   .arguments = {"--id", keeper->volume, "--volume", keeper->volume},
                   .state_dir = policy_.state_dir,
                   .run_dir = policy_.run_dir,
                   .listen_fds = {},
                   .log_path = log_path(layout, keeper->volume)};
  for (const auto& [uri, listener] : keeper->listeners) {
    if (listener.held) how.listen_fds.push_back(listener.held.get());
  }
  keeper->process = CO_TRY(launch_keeper(how));
  keeper->alive = true;
  keeper->ending = false;
  start(executor_, watch_process(keeper, ++keeper->generation));

  auto opened = co_await attach(keeper);
  if (opened) {
    events_.publish("keeper_started", {.volume = keeper->volume, .job = {}},
                    fmt::format("process {}", keeper->process.pid));
    co_return Result<void>();
  }
  if (keeper->alive) (void)send_signal(keeper->process.pidfd, SIGTERM);
  keeper->backing = Use();
  co_return failure(std::move(opened).error());
}

/// Connects to the keeper that runs, and waits until it has opened the volume. `disconnected` if
/// none runs.
Async<Result<void>> Keepers::attach(std::shared_ptr<Keeper> keeper) {
  const bool ours = keeper->alive;
  auto hello = co_await await_open(keeper);
  if (!hello) {
    keeper->connection.reset();
    co_return failure(std::move(hello).error());
  }
  keeper->connection->hear(
      *hello, keeper->heard,
      [this, volume = keeper->volume](const std::string& event, std::string message) {
        events_.publish(event, {.volume = volume, .job = {}}, std::move(message));
      });
  if (!ours) {
    // Somebody else's child, an earlier daemon's. It lives: it has just answered, so the pid is
    // still its own.
    keeper->process.pid = CO_TRY(keeper->connection->peer_pid());
    keeper->process.pidfd = CO_TRY(open_pidfd(keeper->process.pid));
    keeper->alive = true;
    keeper->ending = false;
    start(executor_, watch_process(keeper, ++keeper->generation));
    if (const std::string backing = CO_TRY(facts_.backing_volume(keeper->volume));
        !backing.empty()) {
      keeper->backing = CO_TRY(co_await use(backing));
    }
    events_.publish("keeper_found", {.volume = keeper->volume, .job = {}},
                    fmt::format("process {}", keeper->process.pid));
  }
  CO_TRY(co_await refresh_listeners(keeper));
  const auto connection = keeper->connection;
  if (opened_hook_) CO_TRY(co_await opened_hook_(*connection, keeper->volume));
  co_return Result<void>();
}

/// Its answer to `hello`.
Async<Result<Json>> Keepers::await_open(std::shared_ptr<Keeper> keeper) {
  const machine::RunLayout layout{policy_.run_dir};
  const auto deadline = SteadyClock::now() + policy_.start_timeout;
  const bool ours = keeper->alive;
  for (Milliseconds retry = connect_retry_first; SteadyClock::now() < deadline;
       retry = std::min(retry * 2, connect_retry_max)) {
    if (ours && !keeper->alive) {
      co_return failure(
          keeper_failure(log_tail(log_path(layout, keeper->volume), keeper->process.log_offset)));
    }
    auto connection = co_await KeeperConnection::connect(layout.control_socket(keeper->volume));
    if (!connection) {
      if (!ours || connection.error().kind() != ErrorKind::disconnected)
        co_return failure(connection.error());
      co_await keeper->process_ended.wait_for(retry);
      continue;
    }
    keeper->connection = std::move(*connection);
    while (SteadyClock::now() < deadline) {
      auto hello =
          co_await keeper->connection->call("hello", Json::object(), {.timeout = hello_timeout});
      if (!hello) {
        if (ours || hello.error().kind() != ErrorKind::disconnected) break;
        co_return failure(std::move(hello).error());
      }
      if (hello->value("protocol", 0) != machine::control_protocol_version) {
        co_return failure(ErrorKind::unsupported,
                          fmt::format("its keeper (process {}) is of another version of berth: end "
                                      "it, or use that version",
                                      hello->value("pid", 0)));
      }
      if (hello->value("volume_open", false)) co_return std::move(*hello);
      co_await keeper->process_ended.wait_for(retry);
      retry = std::min(retry * 2, connect_retry_max);
    }
  }
  co_return failure(ErrorKind::timed_out, fmt::format("its keeper did not open it within {} s",
                                                      policy_.start_timeout.count() / 1000));
}

Async<void> Keepers::watch_process(std::shared_ptr<Keeper> keeper, std::uint64_t generation) {
  co_await process_end(keeper->process.pidfd);
  if (keeper->generation != generation) co_return;
  const std::string how = reap(keeper->process.pidfd);
  keeper->alive = false;
  keeper->heard = false;
  if (keeper->connection) keeper->connection->close();
  keeper->backing = Use();
  keeper->process_ended.notify();
  if (keeper->opening) co_return;  // whoever opens it sees to it
  events_.publish("keeper_ended", {.volume = keeper->volume, .job = {}},
                  fmt::format("process {}{}{}", keeper->process.pid, how.empty() ? "" : ": ", how));
  if (!keeper->ending && keeper->is_served()) co_await keep_serving(keeper);
}

Async<void> Keepers::keep_serving(std::shared_ptr<Keeper> keeper) {
  for (Milliseconds backoff = restart_backoff_first; !quitting_;
       backoff = std::min(backoff * 2, restart_backoff_max)) {
    {
      const auto lock = co_await keeper->mutex.lock();
      if (keeper->is_open() || !keeper->is_served() || quitting_) co_return;
      const auto opened = co_await open(keeper);
      if (opened) co_return;
      events_.publish("keeper_failed", {.volume = keeper->volume, .job = {}},
                      opened.error().message());
    }
    co_await quitting_changed_.wait_for(backoff);
  }
}

Async<void> Keepers::take_over() {
  const machine::RunLayout layout{policy_.run_dir};
  std::set<std::string> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(layout.keepers(), error)) {
    if (machine::is_valid_name(entry.path().filename().string()))
      found.insert(entry.path().filename().string());
  }
  std::vector<Async<bool>> tasks;
  for (const std::string& volume : found) {
    if (facts_.check_exists(volume)) tasks.push_back(take_over_one(volume));
  }
  co_await gather(std::move(tasks));
  start(executor_, end_idle_keepers());
}

Async<bool> Keepers::take_over_one(std::string volume) {
  const auto keeper = keeper_of(volume);
  const auto lock = co_await keeper->mutex.lock();
  if (keeper->is_open()) co_return true;  // as somebody's backing
  keeper->opening = true;
  auto found = co_await attach(keeper);
  keeper->opening = false;
  if (found) co_return true;
  if (found.error().kind() == ErrorKind::disconnected) {
    // It is gone. If it served, it is to serve again: the next one knows from serve.json where.
    if (!was_serving(policy_.run_dir, volume)) co_return false;
    found = co_await open(keeper);
    if (found) co_return true;
  }
  events_.publish("keeper_failed", {.volume = volume, .job = {}}, found.error().message());
  co_return false;
}

/// A volume whose keeper holds this one, because its disk stands on a checkpoint of it; "" for
/// none.
std::string Keepers::volume_above(const Keeper& keeper) const {
  for (const auto& [volume, other] : keepers_) {
    if (other->backing.is_of(keeper)) return volume;
  }
  return {};
}

Async<Result<AsyncMutex::Lock>> Keepers::close(std::string volume) {
  const auto keeper = keeper_of(volume);
  auto lock = co_await keeper->mutex.lock();
  if (keeper->is_served()) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("volume '{}' is served at {}: unserve it first", volume,
                                  keeper->listeners.begin()->first));
  }
  if (const auto above = volume_above(*keeper); !above.empty()) {
    co_return failure(
        ErrorKind::in_use,
        fmt::format("volume '{}', which is open, stands on a checkpoint of volume '{}'", above,
                    volume));
  }
  if (keeper->uses != 0) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("volume '{}' is being worked on: see `berth job list`", volume));
  }
  if (!keeper->is_open()) {
    // One that an earlier daemon left, and that could not be taken over.
    keeper->opening = true;
    (void)co_await attach(keeper);
    keeper->opening = false;
    if (keeper->is_served()) {
      co_return failure(ErrorKind::in_use,
                        fmt::format("volume '{}' is served: unserve it first", volume));
    }
  }
  if (keeper->is_open()) CO_TRY(co_await stop(keeper));
  keeper->last_error.clear();
  co_return std::move(lock);
}

/// With the keeper's mutex held.
Async<Result<void>> Keepers::stop(std::shared_ptr<Keeper> keeper) {
  keeper->ending = true;
  auto answer =
      co_await keeper->connection->call("shutdown", Json::object(), {.timeout = close_timeout});
  if (!answer && answer.error().kind() != ErrorKind::disconnected) {
    keeper->ending = false;
    co_return failure(std::move(answer).error().with_context(
        fmt::format("cannot close volume '{}'", keeper->volume)));
  }
  const auto deadline = SteadyClock::now() + process_end_timeout;
  while (keeper->alive && SteadyClock::now() < deadline)
    co_await keeper->process_ended.wait_for(process_end_timeout);
  if (keeper->alive) {
    co_return failure(ErrorKind::timed_out,
                      fmt::format("the keeper of volume '{}' (process {}) has closed it but does "
                                  "not end",
                                  keeper->volume, keeper->process.pid));
  }
  keeper->connection.reset();
  // A keeper leaves the files of its sockets for the next one; there is to be none.
  for (const auto& [uri, listener] : keeper->listeners) {
    if (listener.address.contains("unix"))
      ::unlink(listener.address["unix"].get<std::string>().c_str());
  }
  keeper->listeners.clear();
  co_return Result<void>();
}

Async<void> Keepers::end_idle_keepers() {
  const Milliseconds interval = std::clamp(policy_.idle / 4, Milliseconds(20), Milliseconds(5000));
  while (!quitting_) {
    co_await quitting_changed_.wait_for(interval);
    const auto keepers = keepers_;
    for (const auto& [volume, keeper] : keepers) {
      const auto is_idle = [&keeper, this] {
        return keeper->is_open() && keeper->uses == 0 && !keeper->is_served() &&
               SteadyClock::now() - keeper->last_used >= policy_.idle;
      };
      if (quitting_ || !is_idle()) continue;
      const auto lock = keeper->mutex.try_lock();
      if (!lock || !is_idle()) continue;
      if (const auto stopped = co_await stop(keeper); !stopped)
        log_warning("{}", stopped.error().message());
    }
  }
}

Async<Keepers::Stopped> Keepers::stop_all() {
  quitting_ = true;  // nothing is started or restarted from here on
  quitting_changed_.notify();
  Stopped stopped;
  // Those that others stand on come last: each round ends those that nobody uses.
  for (bool progress = true; progress;) {
    progress = false;
    const auto keepers = keepers_;
    for (const auto& [volume, keeper] : keepers) {
      const auto lock = co_await keeper->mutex.lock();
      if (!keeper->is_open() || keeper->uses != 0) continue;
      if (const auto result = co_await stop(keeper); !result) {
        log_warning("{}", result.error().message());
        continue;
      }
      ++stopped.ended;
      progress = true;
    }
  }
  for (const auto& [volume, keeper] : keepers_) {
    if (keeper->is_open()) stopped.failed.push_back(volume);
  }
  co_return stopped;
}

KeeperStatus Keepers::status(const std::string& volume) const {
  const auto found = keepers_.find(volume);
  if (found == keepers_.end()) return {.state = "closed", .error = {}};
  const Keeper& keeper = *found->second;
  if (keeper.is_open() && !keeper.opening) {
    return {
        .state = keeper.is_served() ? "served" : "open", .error = {}, .pid = keeper.process.pid};
  }
  if (!keeper.last_error.empty()) return {.state = "failed", .error = keeper.last_error};
  if (keeper.opening || keeper.is_served()) return {.state = "opening", .error = {}};
  return {.state = "closed", .error = {}};
}

std::size_t Keepers::open_count() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(keepers_, [](const auto& entry) { return entry.second->is_open(); }));
}

}  // namespace berth::control
