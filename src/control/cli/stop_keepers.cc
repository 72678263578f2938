#include "control/cli/stop_keepers.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <map>
#include <vector>

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "container/container_layout.h"
#include "control/keeper_connection.h"
#include "control/keeper_process.h"
#include "control/spawn.h"
#include "control/volumes.h"
#include "machine/layout.h"
#include "machine/vm/qemu_process.h"
#include "machine/volume_directory.h"
#include "machine/volume_store.h"

namespace berth::control::cli {
namespace {

constexpr Milliseconds close_timeout{60'000};
constexpr Milliseconds end_timeout{10'000};  // of the process, after it has closed

struct Outcome {
  std::size_t ended = 0;
  std::size_t machines = 0;
  std::vector<std::string> refused;
};

/// The files of the sockets on which it serves: it leaves them for the next keeper, and there is to
/// be none.
Async<std::vector<std::string>> socket_files(KeeperConnection& connection) {
  std::vector<std::string> paths;
  const auto answer = co_await connection.call("serve.list", nlohmann::json::object(), {});
  if (!answer || !answer->is_object()) co_return paths;
  for (const auto& listener : answer->value("listeners", nlohmann::json::array())) {
    if (listener.is_object() && listener.contains("unix"))
      paths.push_back(listener.value("unix", std::string()));
  }
  co_return paths;
}

Async<void> stop_one(std::string id, std::string socket_path, Outcome& outcome) {
  const auto connection = co_await KeeperConnection::connect(socket_path);
  if (!connection) co_return;  // none is there
  const auto pid = (*connection)->peer_pid();
  const auto pidfd = pid ? open_pidfd(*pid) : Result<Fd>(failure(pid.error()));
  const auto files = co_await socket_files(**connection);
  const auto answer = co_await (*connection)
                          ->call("shutdown", nlohmann::json::object(), {.timeout = close_timeout});
  if (!answer && answer.error().kind() != ErrorKind::disconnected) {
    outcome.refused.push_back(fmt::format("{}: {}", id, answer.error().message()));
    co_return;
  }
  if (pidfd && !wait_for_end(*pidfd, end_timeout)) {
    outcome.refused.push_back(
        fmt::format("{}: process {} has closed the volume but does not end", id, *pid));
    co_return;
  }
  for (const std::string& path : files) ::unlink(path.c_str());
  ++outcome.ended;
}

/// A machine loses its disks with their keepers: it ends first, by force.
Async<void> stop_machine(std::string name, machine::RunLayout layout, Outcome& outcome) {
  if (const auto connection =
          co_await KeeperConnection::connect(layout.machine_control_socket(name))) {
    const auto pid = (*connection)->peer_pid();
    const auto pidfd = pid ? open_pidfd(*pid) : Result<Fd>(failure(pid.error()));
    const auto stopped =
        co_await (*connection)
            ->call("machine.stop", {{"timeout_ms", 0}}, {.timeout = close_timeout});
    if (stopped) ++outcome.machines;
    (void)co_await (*connection)
        ->call("shutdown", nlohmann::json::object(), {.timeout = close_timeout});
    if (pidfd) wait_for_end(*pidfd, end_timeout);
  }
  // One that has no keeper.
  if (const auto qemu = machine::find_qemu(layout.machine_qemu_directory(name) + '/')) {
    (void)send_signal(qemu->pidfd, SIGKILL);
    wait_for_end(qemu->pidfd, end_timeout);
    ++outcome.machines;
  }
  std::error_code ignored;
  for (const std::string& directory :
       {layout.machine_qemu_directory(name), layout.machine(name) + "/d"})
    std::filesystem::remove_all(directory, ignored);
}

/// The same for a container.
Async<void> stop_container(std::string name, container::ContainerRunLayout run, Outcome& outcome) {
  const auto connection = co_await KeeperConnection::connect(run.control_socket(name));
  if (!connection) co_return;
  const auto pid = (*connection)->peer_pid();
  const auto pidfd = pid ? open_pidfd(*pid) : Result<Fd>(failure(pid.error()));
  const auto stopped =
      co_await (*connection)
          ->call("container.stop", {{"timeout_ms", 0}}, {.timeout = close_timeout});
  if (stopped) ++outcome.machines;
  (void)co_await (*connection)
      ->call("shutdown", nlohmann::json::object(), {.timeout = close_timeout});
  if (pidfd) wait_for_end(*pidfd, end_timeout);
}

Async<void> stop_containers(container::ContainerRunLayout run, Outcome& outcome) {
  for (const std::string& name : machine::names_in(run.containers()))
    co_await stop_container(name, run, outcome);
  // Those that have no keeper.
  while (const auto qemu = machine::find_qemu(run.microvms() + '/')) {
    (void)send_signal(qemu->pidfd, SIGKILL);
    if (!wait_for_end(qemu->pidfd, end_timeout)) break;
    ++outcome.machines;
  }
}

Async<void> stop_all(std::vector<std::string> machines, std::vector<std::string> ids,
                     machine::RunLayout layout, Outcome& outcome) {
  co_await stop_containers({layout.run_dir}, outcome);
  for (const std::string& machine : machines) co_await stop_machine(machine, layout, outcome);
  for (const std::string& id : ids) co_await stop_one(id, layout.control_socket(id), outcome);
}

/// Those that stand on others first, so that no backing goes from under a disk.
std::vector<std::string> order_of_closing(const machine::VolumeStore& store,
                                          const std::vector<std::string>& ids) {
  std::map<std::string, std::string> backing;
  for (const std::string& id : ids) {
    const auto summary = store.summary(id);
    backing[id] = summary ? backing_volume_of(summary->backing) : std::string();
  }
  std::vector<std::string> ordered;
  while (!backing.empty()) {
    const auto stood_on = [&backing](const std::string& id) {
      return std::ranges::any_of(
          backing, [&id](const auto& entry) { return entry.second == id && entry.first != id; });
    };
    auto next =
        std::ranges::find_if(backing, [&](const auto& entry) { return !stood_on(entry.first); });
    if (next == backing.end()) next = backing.begin();
    ordered.push_back(next->first);
    backing.erase(next);
  }
  return ordered;
}

/// A daemon that was killed leaves its socket. Nobody else can be about to listen there while we
/// have the lock.
void remove_socket_of_dead_daemon(const std::string& state_dir, const std::string& run_dir) {
  const Fd lock(::open((state_dir + "/daemon.lock").c_str(), O_RDWR | O_CLOEXEC));
  if (!lock || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return;
  const std::string path = run_dir + "/api.sock";
  struct stat status{};
  if (::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) ::unlink(path.c_str());
}

}  // namespace

Result<StoppedKeepers> stop_keepers(const std::string& state_dir, const std::string& run_dir) {
  const machine::RunLayout layout{run_dir};
  std::vector<std::string> ids;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(layout.keepers(), error)) {
    ids.push_back(entry.path().filename().string());
  }
  ids = order_of_closing(machine::VolumeStore(state_dir, run_dir), ids);
  Outcome outcome;
  boost::asio::io_context io(1);
  boost::asio::co_spawn(
      io, stop_all(machine::names_in(layout.machines()), std::move(ids), layout, outcome),
      [&io](const std::exception_ptr& exception) {
        if (exception) std::terminate();
        io.stop();
      });
  io.run();
  remove_socket_of_dead_daemon(state_dir, run_dir);
  if (outcome.refused.empty())
    return StoppedKeepers{.keepers = outcome.ended, .machines = outcome.machines};
  return failure(ErrorKind::timed_out, fmt::format("{} keepers ended, but not {}", outcome.ended,
                                                   fmt::join(outcome.refused, "; ")));
}

}  // namespace berth::control::cli
