#include "machine/vm/machine_methods.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "machine/control_messages.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t stop_timeout_max_ms = 3'600'000;
constexpr std::size_t disks_max = 64;

Result<Duration> milliseconds_param(const Json& params, const char* name, Duration otherwise,
                                    Duration most) {
  const auto number = TRY(number_param(params, name));
  if (!number) return otherwise;
  const auto limit = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(most).count());
  return std::chrono::milliseconds(std::min(*number, limit));
}

Result<MachineStart> decode_start(const Json& params) {
  MachineStart start;
  const auto disks = params.find("disks");
  if (disks == params.end() || !disks->is_array() || disks->size() > disks_max)
    return failure(ErrorKind::invalid_argument, "disks: expected a list of disks");
  for (const Json& disk : *disks) start.disks.push_back(TRY(decode_attached_disk(disk)));
  start.suspended = TRY(flag_param(params, "suspended"));
  start.wake = TRY(flag_param(params, "wake"));
  const std::string memory = TRY(text_param(params, "memory"));
  if (!memory.empty()) {
    start.restore = MachineRestore{.memory = memory,
                                   .devices = TRY(required_text_param(params, "devices")),
                                   .qemu = TRY(text_param(params, "qemu")),
                                   .accelerator = TRY(text_param(params, "accelerator"))};
  }
  return start;
}

}  // namespace

MachineMethods::MachineMethods(UringLoop& loop, ControlServer& server, Machine& machine,
                               Quiescence& quiescence, MemorySave& save)
    : machine_(machine), quiescence_(quiescence), save_(save), gate_(loop) {
  add(server, "machine.start", &MachineMethods::start);
  add(server, "machine.stop", &MachineMethods::stop);
  add(server, "machine.suspend", &MachineMethods::suspend);
  add(server, "machine.resume", &MachineMethods::resume);
  add(server, "machine.info", &MachineMethods::info);
  add(server, "machine.attach", &MachineMethods::attach);
  add(server, "machine.detach", &MachineMethods::detach);
  add(server, "machine.limit", &MachineMethods::limit);
  add(server, "guest.freeze", &MachineMethods::freeze);
  add(server, "guest.thaw", &MachineMethods::thaw);
  add(server, "memory.begin", &MachineMethods::save_begin);
  add(server, "memory.finish", &MachineMethods::save_finish);
  add(server, "memory.abandon", &MachineMethods::save_abandon);
}

void MachineMethods::add(ControlServer& server, const char* name, Method method) {
  server.add(name, [this, method](ControlCall& call) { return guarded(method, call); });
}

Task<Result<Json>> MachineMethods::guarded(Method method, ControlCall& call) {
  if (!is_open_)
    co_return failure(ErrorKind::precondition, "the machine's keeper is starting, or ending");
  co_return co_await (this->*method)(call);
}

Task<> MachineMethods::close() {
  is_open_ = false;
  co_await gate_.drained();
  co_await undo();
}

/// Whoever froze the guest or stopped the machine is gone.
Task<> MachineMethods::undo() {
  if (save_.is_active()) co_await save_.abandon();
  if (quiescence_.is_frozen()) {
    const auto thawed = co_await quiescence_.thaw();
    if (!thawed) log_warning("{}", thawed.error().message());
  }
}

Task<Result<Json>> MachineMethods::start(ControlCall& call) {
  MachineStart how = CO_TRY(decode_start(call.params()));
  CO_TRY(co_await machine_.start(std::move(how)));
  co_return Json{{"pid", machine_.pid()}};
}

Task<Result<Json>> MachineMethods::stop(ControlCall& call) {
  const Duration timeout =
      CO_TRY(milliseconds_param(call.params(), "timeout_ms", Duration::zero(),
                                std::chrono::milliseconds(stop_timeout_max_ms)));
  CO_TRY(co_await machine_.stop(timeout));
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::suspend(ControlCall& call) {
  const std::string word = CO_TRY(text_param(call.params(), "level"));
  const PauseLevel level = CO_TRY(parse_pause_level(word.empty() ? "frozen" : word));
  if (save_.is_active() || quiescence_.is_frozen())
    co_return failure(ErrorKind::precondition, "a checkpoint is being made");
  CO_TRY(co_await machine_.suspend(level));
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::resume(ControlCall& /*call*/) {
  if (save_.is_active()) co_return failure(ErrorKind::precondition, "a checkpoint is being made");
  CO_TRY(co_await machine_.resume());
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::info(ControlCall& call) {
  const bool with_addresses = CO_TRY(flag_param(call.params(), "addresses"));
  Json info = co_await machine_.info(with_addresses);
  info["frozen"] = quiescence_.is_frozen();
  co_return info;
}

Task<Result<Json>> MachineMethods::attach(ControlCall& call) {
  AttachedDisk disk = CO_TRY(decode_attached_disk(call.params()));
  CO_TRY(co_await machine_.attach(std::move(disk)));
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::detach(ControlCall& call) {
  std::string node = CO_TRY(required_text_param(call.params(), "node"));
  CO_TRY(co_await machine_.detach(std::move(node)));
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::limit(ControlCall& call) {
  CO_TRY(machine_.monitor());
  LimitSpecification limits;
  limits.cpus =
      static_cast<double>(CO_TRY(number_param(call.params(), "millicpus")).value_or(0)) / 1000;
  limits.memory = CO_TRY(number_param(call.params(), "memory")).value_or(0);
  CO_TRY(machine_.limit(limits));
  using OnCrash = MachineSpecification::OnCrash;
  const bool restart = CO_TRY(flag_param(call.params(), "restart"));
  machine_.set_on_crash(restart ? OnCrash::restart : OnCrash::preserve);
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::freeze(ControlCall& call) {
  const Duration limit =
      CO_TRY(milliseconds_param(call.params(), "limit_ms", freeze_limit_default, freeze_limit_max));
  call.when_client_goes([this] { gate_.spawn(undo()); });
  const Quiet quiet = CO_TRY(co_await quiescence_.freeze(limit));
  co_return Json{{"consistency", to_string(quiet.consistency)},
                 {"file_systems", quiet.file_systems},
                 {"reason", quiet.reason}};
}

Task<Result<Json>> MachineMethods::thaw(ControlCall& /*call*/) {
  const auto thawed = CO_TRY(co_await quiescence_.thaw());
  co_return Json{{"frozen_us", to_microseconds(thawed.frozen)},
                 {"in_time", thawed.in_time},
                 {"hook_failure", thawed.hook_failure}};
}

Task<Result<Json>> MachineMethods::save_begin(ControlCall& call) {
  const std::string directory = CO_TRY(required_text_param(call.params(), "directory"));
  call.when_client_goes([this] { gate_.spawn(undo()); });
  const auto report = [&call](std::uint64_t done, std::uint64_t total) {
    call.report({.phase = "memory", .done = done, .total = total});
  };
  CO_TRY(co_await save_.begin(directory, report, [&call] { return call.check(); }));
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::save_abandon(ControlCall& /*call*/) {
  co_await save_.abandon();
  co_return Json::object();
}

Task<Result<Json>> MachineMethods::save_finish(ControlCall& /*call*/) {
  const MemorySaveFigures figures = CO_TRY(co_await save_.finish());
  co_return Json{{"rounds", figures.rounds},
                 {"bytes", figures.bytes},
                 {"last_round_bytes", figures.last_round_bytes},
                 {"device_bytes", figures.device_bytes},
                 {"stopped_us", to_microseconds(figures.stopped)},
                 {"scanning_us", to_microseconds(figures.scanning)},
                 {"copying_us", to_microseconds(figures.copying)},
                 {"devices_us", to_microseconds(figures.saving_devices)}};
}

}  // namespace berth::machine
