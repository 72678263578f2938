#include "control/guest_keepers.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "control/keeper_failure.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"
#include "machine/volume_directory.h"

namespace berth::control {
using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

namespace {

constexpr Milliseconds hello_timeout{10'000};
constexpr Milliseconds launch_patience{30'000};
constexpr Milliseconds last_words_patience{1'000};
constexpr Milliseconds away_patience{10'000};
constexpr Milliseconds away_poll{10};
constexpr Milliseconds connect_retry_first{2};
constexpr Milliseconds connect_retry_max{50};
constexpr Milliseconds restart_backoff_first{100};
constexpr Milliseconds restart_backoff_max{10'000};

Result<void> make_passage(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  // QEMU's user goes through, and sees nothing.
  if (!error && ::chmod(path.c_str(), 0711) != 0)
    error = std::error_code(errno, std::generic_category());
  if (error)
    return errno_failure(error.value(), fmt::format("cannot make the directory '{}'", path));
  return {};
}

}  // namespace

GuestKeepers::GuestKeepers(Executor executor, GuestPolicy policy, GuestKind kind, Keepers& keepers,
                           EventLog& events, Release release_ended)
    : executor_(std::move(executor)),
      policy_(std::move(policy)),
      kind_(std::move(kind)),
      keepers_(keepers),
      events_(events),
      release_ended_(std::move(release_ended)) {}

void GuestKeepers::quit() {
  quitting_ = true;
  for (const auto& [name, guest] : guests_) {
    if (guest->connection) guest->connection->close();
    guest->process_ended.notify();
  }
}

GuestKeepers::Guest GuestKeepers::of(const std::string& name) {
  Guest& guest = guests_[name];
  if (!guest) guest = std::make_shared<GuestKeeper>(executor_, name);
  return guest;
}

std::string GuestKeepers::directory(const std::string& name) const {
  return fmt::format("{}/{}", kind_.directory, name);
}

std::string GuestKeepers::log_path(const std::string& name) const {
  return fmt::format("{}/{}", directory(name), kind_.log_name);
}

std::string GuestKeepers::disk_socket(const std::string& name, const std::string& node) const {
  return fmt::format("{}/d/{}", directory(name), node);
}

bool GuestKeepers::has_qemu(const std::string& name) const {
  return machine::path_exists(directory(name) + "/launch.json");
}

Result<std::shared_ptr<KeeperConnection>> GuestKeepers::connection(const std::string& name) const {
  const auto found = guests_.find(name);
  if (found == guests_.end() || !found->second->is_open()) {
    return failure(ErrorKind::precondition,
                   fmt::format("the {} '{}' {}", kind_.noun, name, kind_.is_off));
  }
  return found->second->connection;
}

Async<Result<std::shared_ptr<KeeperConnection>>> GuestKeepers::find_connection(std::string name) {
  const auto deadline = SteadyClock::now() + away_patience;
  while (true) {
    auto found = connection(name);
    if (found || quitting_ || !has_qemu(name) || SteadyClock::now() > deadline) co_return found;
    co_await of(name)->process_ended.wait_for(away_poll);
  }
}

Async<Result<Json>> GuestKeepers::call(std::string name, std::string method, Json params,
                                       CallOptions options) {
  const auto channel = CO_TRY(connection(name));
  co_return co_await channel->call(std::move(method), std::move(params), std::move(options));
}

// --- Processes.

Async<Result<void>> GuestKeepers::launch(Guest guest, std::vector<int> listen_fds) {
  CO_TRY(make_passage(kind_.directory));
  CO_TRY(make_passage(directory(guest->name)));
  guest->opening = true;
  guest->process =
      CO_TRY(launch_keeper({.program = policy_.program,
                            .arguments = {"--" + kind_.noun, guest->name, "--memory-dir",
                                          policy_.memory_dir, "--preload", policy_.preload},
                            .state_dir = policy_.state_dir,
                            .run_dir = policy_.run_dir,
                            .listen_fds = std::move(listen_fds),
                            .log_path = log_path(guest->name)}));
  guest->alive = true;
  control::start(executor_, watch_process(guest, ++guest->generation));
  auto attached = co_await attach(guest);
  guest->opening = false;
  if (!attached && guest->alive) (void)send_signal(guest->process.pidfd, SIGTERM);
  co_return attached;
}

/// Connects to the keeper that runs, and waits until it answers. `disconnected` if none runs.
Async<Result<void>> GuestKeepers::attach(Guest guest) {
  const bool ours = guest->alive;
  const auto deadline = SteadyClock::now() + launch_patience;
  for (Milliseconds retry = connect_retry_first; SteadyClock::now() < deadline;
       retry = std::min(retry * 2, connect_retry_max)) {
    if (ours && !guest->alive)
      co_return failure(keeper_failure(log_tail(log_path(guest->name), guest->process.log_offset)));
    auto connection = co_await KeeperConnection::connect(directory(guest->name) + "/control");
    if (!connection && (!ours || connection.error().kind() != ErrorKind::disconnected))
      co_return failure(connection.error());
    if (connection) {
      // A socket of a keeper that was killed may take one more connection, and then hang up.
      auto hello =
          co_await (*connection)->call("hello", Json::object(), {.timeout = hello_timeout});
      if (!hello && !ours) co_return failure(std::move(hello).error());
      if (hello && hello->value("protocol", 0) != machine::control_protocol_version) {
        co_return failure(ErrorKind::unsupported,
                          fmt::format("its keeper (process {}) is of another version of berth",
                                      hello->value("pid", 0)));
      }
      if (hello && hello->value("over", false)) {
        hear(*guest, **connection, *hello);
        co_await await_end(guest);
        co_return failure(ErrorKind::precondition,
                          fmt::format("the {} '{}' has ended", kind_.noun, guest->name));
      }
      if (hello && hello->value("open", false)) {
        if (!ours) {
          guest->process.pid = CO_TRY((*connection)->peer_pid());
          guest->process.pidfd = CO_TRY(open_pidfd(guest->process.pid));
          guest->alive = true;
          control::start(executor_, watch_process(guest, ++guest->generation));
        }
        if (!ours && !hello->value("on", false)) {
          // Of a daemon that died before it could say what to start.
          (void)co_await (*connection)
              ->call("shutdown", Json::object(), {.timeout = hello_timeout});
          co_await await_end(guest);
          co_return failure(ErrorKind::disconnected,
                            fmt::format("its keeper had no {}", kind_.noun));
        }
        guest->connection = std::move(*connection);
        hear(*guest, *guest->connection, *hello);
        co_return Result<void>();
      }
    }
    co_await guest->process_ended.wait_for(retry);
  }
  co_return failure(
      ErrorKind::timed_out,
      fmt::format("the keeper of the {} '{}' did not answer in time", kind_.noun, guest->name));
}

/// Passes on what the keeper reports.
void GuestKeepers::hear(GuestKeeper& guest, KeeperConnection& connection, const Json& hello) {
  connection.hear(hello, guest.heard,
                  [this, name = guest.name](const std::string& event, std::string message) {
                    events_.publish(event, kind_.subject(name), std::move(message));
                  });
}

Async<void> GuestKeepers::watch_process(Guest guest, std::uint64_t generation) {
  co_await process_end(guest->process.pidfd);
  if (guest->generation != generation) co_return;
  // Its last answer may lie in the socket.
  if (const auto connection = guest->connection)
    co_await connection->heard_out(last_words_patience);
  if (guest->generation != generation) co_return;
  guest->last_end = reap(guest->process.pidfd);
  guest->alive = false;
  guest->heard = false;
  if (guest->connection) guest->connection->close();
  guest->process_ended.notify();
  if (!guest->opening && !quitting_) co_await keep(guest);
}

/// A keeper has ended: with its guest, and then the disks are free; or from under it, and then
/// there is to be another.
Async<void> GuestKeepers::keep(Guest guest) {
  bool died = false;
  for (Milliseconds backoff = restart_backoff_first; !quitting_;
       backoff = std::min(backoff * 2, restart_backoff_max)) {
    {
      const auto lock = co_await guest->mutex.lock();
      if (guest->is_open() || quitting_) co_return;
      if (co_await release_ended_(guest->name)) co_return;
      if (!std::exchange(died, true)) {
        events_.publish("keeper_ended", kind_.subject(guest->name),
                        fmt::format("process {}{}{}", guest->process.pid,
                                    guest->last_end.empty() ? "" : ": ", guest->last_end));
      }
      const auto launched = co_await launch(guest);
      if (!launched && co_await release_ended_(guest->name)) co_return;
      events_.publish(
          launched ? "keeper_started" : "keeper_failed", kind_.subject(guest->name),
          launched ? fmt::format("process {}", guest->process.pid) : launched.error().message());
      if (launched) co_return;
    }
    co_await guest->process_ended.wait_for(backoff);
  }
}

Async<bool> GuestKeepers::take_over(Guest guest) {
  if (co_await attach(guest)) {
    events_.publish("keeper_found", kind_.subject(guest->name),
                    fmt::format("process {}", guest->process.pid));
    co_return true;
  }
  if (!has_qemu(guest->name)) co_return false;
  // Also of one that ended meanwhile: its keeper says how.
  const auto launched = co_await launch(guest);
  if (!launched && !co_await release_ended_(guest->name))
    events_.publish("keeper_failed", kind_.subject(guest->name), launched.error().message());
  co_return true;
}

Async<bool> GuestKeepers::give_up(Guest guest) {
  if (guest->alive) {
    guest->opening = true;  // its end is ours
    (void)send_signal(guest->process.pidfd, SIGTERM);
    co_await await_end(guest);
    guest->opening = false;
  }
  if (!has_qemu(guest->name)) co_return false;
  control::start(executor_, keep(guest));
  co_return true;
}

Async<void> GuestKeepers::await_end(Guest guest) {
  const auto deadline = SteadyClock::now() + kind_.end_patience;
  const std::uint64_t generation = guest->generation;  // the next one is another
  while (guest->alive && guest->generation == generation && SteadyClock::now() < deadline)
    co_await guest->process_ended.wait_for(kind_.end_patience);
}

Result<void> GuestKeepers::hand_over(Guest from, Guest to) {
  std::error_code error;
  std::filesystem::remove_all(directory(to->name), error);
  std::filesystem::rename(directory(from->name), directory(to->name), error);
  if (error) {
    return failure(Error::from_errno(
        error.value(),
        fmt::format("cannot rename '{}' to '{}'", directory(from->name), directory(to->name))));
  }
  to->connection = std::move(from->connection);
  to->process = std::move(from->process);
  to->alive = std::exchange(from->alive, false);
  to->heard = false;
  ++from->generation;  // nobody watches it there any more
  control::start(executor_, watch_process(to, ++to->generation));
  if (to->connection) hear(*to, *to->connection, Json::object());
  return {};
}

std::vector<std::string> GuestKeepers::directories() const {
  return machine::names_in(kind_.directory);
}

// --- Disks.

Async<Result<machine::AttachedDisk>> GuestKeepers::serve(std::string name,
                                                         machine::AttachedDisk disk,
                                                         std::uint32_t uid) {
  CO_TRY(make_passage(directory(name) + "/d"));
  disk.socket = disk_socket(name, disk.node);
  Json request = {{"unix", disk.socket}, {"read_only", disk.read_only}};
  if (::geteuid() == 0) request["owner"] = uid;
  CO_TRY(co_await keepers_.serve(disk.export_name, std::move(request)));
  co_return disk;
}

Async<void> GuestKeepers::unserve(std::string name, std::string node, std::string volume) {
  const std::string socket = disk_socket(name, node);
  struct stat status{};
  if (::lstat(socket.c_str(), &status) != 0) co_return;
  const auto ended = co_await keepers_.unserve(volume, {{"unix", socket}});
  if (!ended && ended.error().kind() != ErrorKind::not_found) {
    log_warning("{}", ended.error().message());
    co_return;
  }
  ::unlink(socket.c_str());
}

}  // namespace berth::control
