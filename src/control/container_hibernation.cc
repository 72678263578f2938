// Containers: those that are hibernated, which have neither keeper nor QEMU. What they keep is
// their place: a name, a directory, their volumes, the ports that they are reached at.

#include <csignal>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/units.h"
#include "control/containers.h"
#include "control/spawn.h"

namespace berth::control {
using Json = nlohmann::json;
using container::HibernationRecord;

namespace {

constexpr Milliseconds pause_timeout{600'000};  // memory goes to a disk
constexpr Milliseconds info_timeout{10'000};
constexpr unsigned exit_code_killed = 128 + SIGKILL;

}  // namespace

Async<Result<HibernationRecord>> Containers::hibernation(std::string name) {
  co_return co_await on_worker(workers_, [store = &store_, name] {
    return container::read_hibernation(store->directory(name));
  });
}

Async<bool> Containers::has_hibernation(std::string name) {
  co_return co_await on_worker(
      workers_, [store = &store_, name] { return machine::is_hibernated(store->directory(name)); });
}

/// Its listening sockets, before its keeper gives them up: nobody who connects meanwhile is
/// refused.
Async<std::vector<Fd>> Containers::take_ports(std::string name) {
  std::vector<Fd> all;
  const auto info =
      co_await guests_.call(name, "container.info", Json::object(), {.timeout = info_timeout});
  if (!info) co_return all;
  const auto container = guests_.of(name);
  for (const Json& number : info->value("port_fds", Json::array())) {
    auto socket = duplicate_from(container->process.pidfd, number.get<int>());
    if (!socket) {
      log_warning("{}: {}", name, socket.error().message());
      co_return std::vector<Fd>();
    }
    all.push_back(*std::move(socket));
  }
  co_return all;
}

Async<Result<void>> Containers::pause(std::string name, machine::PauseLevel level,
                                      Milliseconds idle_min) {
  Json params = {{"level", to_string(level)}, {"idle_ms", idle_min.count()}};
  if (level == machine::PauseLevel::hibernated) {
    if (is_hibernated(name)) co_return Result<void>();
    co_return co_await hibernate(std::move(name), std::move(params));
  }
  if (is_hibernated(name)) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("the container '{}' is hibernated already: resume it first", name));
  }
  CO_TRY(co_await call(name, "container.pause", std::move(params), {.timeout = pause_timeout}));
  co_return Result<void>();
}

Async<Result<void>> Containers::hibernate(std::string name, Json params) {
  CO_TRY(co_await guests_.find_connection(name));
  std::vector<Fd> listening = co_await take_ports(name);
  hibernated_.insert(name);  // before its volumes are free
  auto done =
      co_await guests_.call(name, "container.pause", std::move(params), {.timeout = pause_timeout});
  // The keeper ends with it, which may be before its answer comes; or it has died, and the next one
  // says what became of it.
  if (done || done.error().kind() == ErrorKind::disconnected) {
    co_await guests_.await_end(guests_.of(name));
    (void)co_await guests_.find_connection(name);
  }
  if (!co_await has_hibernation(name) || guests_.is_on(name)) {
    hibernated_.erase(name);
    if (done) co_return failure(ErrorKind::internal, fmt::format("'{}' was not saved", name));
    co_return failure(done.error());
  }
  ports_.watch(name, std::move(listening));
  co_return Result<void>();
}

/// When the daemon starts. Its ports may be somebody else's by now.
Async<void> Containers::find_hibernated(std::string name) {
  hibernated_.insert(name);
  const auto record = co_await hibernation(name);
  auto listening = record ? HibernatedPorts::listen(record->ports) : failure(record.error());
  if (!listening) {
    events_.publish("container_port_lost", {.container = name}, listening.error().message());
    co_return;
  }
  ports_.watch(name, *std::move(listening));
}

Async<Result<void>> Containers::discard_hibernated(std::string name) {
  const auto container = guests_.of(name);
  const auto lock = co_await container->mutex.lock();
  if (!is_hibernated(name)) co_return failure(ErrorKind::precondition, "it is not hibernated");
  const std::string now = format_time(std::chrono::system_clock::now());
  CO_TRY(co_await on_worker(workers_, [store = &store_, name, now]() -> Result<void> {
    TRY(machine::discard_hibernation(store->directory(name)));
    container::ContainerState state = TRY(store->state(name));
    state.running = false;
    state.ended = true;
    state.finished_at = now;
    state.exit_code = exit_code_killed;
    state.exit_signal = SIGKILL;
    return store->save_state(name, state);
  }));
  woke_up(name);
  events_.publish("container_ended", {.container = name},
                  fmt::format("exit code {}", exit_code_killed));
  (void)co_await release_ended(name);
  co_return Result<void>();
}

void Containers::woke_up(const std::string& name) {
  hibernated_.erase(name);
  ports_.forget(name);
}

/// With its lock held, after a start that failed: what it was to go on from may be gone.
Async<void> Containers::look_whether_hibernated(std::string name) {
  if (!is_hibernated(name) || co_await has_hibernation(name)) co_return;
  woke_up(name);
}

Async<Containers::Status> Containers::hibernated_status(std::string name) {
  Status status;
  status.state = "hibernated";
  const auto record = co_await hibernation(name);
  if (!record) {
    status.info = {{"ports", Json::array()}, {"started_at", ""}, {"pause", nullptr}};
    log_warning("{}", record.error().message());
    co_return status;
  }
  status.info = {{"ports", container::encode_ports(record->ports)},
                 {"started_at", record->started_at},
                 {"pause", machine::encode(record->saved.pause)}};
  co_return status;
}

}  // namespace berth::control
