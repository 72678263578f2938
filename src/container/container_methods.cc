#include "container/container_methods.h"

#include <chrono>
#include <utility>

#include "container/guest_checks.h"
#include "container/template_record.h"
#include "machine/control_messages.h"
#include "machine/layout.h"
#include "machine/small_file.h"
#include "machine/vm/machine_store.h"

namespace berth::container {
namespace {

using machine::ControlCall;
using machine::Json;

constexpr std::uint64_t signal_max = 64;
constexpr std::uint64_t idle_ms_max = std::uint64_t{1} << 40;

Result<Container::Start> decode_start(const Json& params) {
  Container::Start start;
  start.hold = TRY(machine::flag_param(params, "hold"));
  start.wake = TRY(machine::flag_param(params, "wake"));
  const std::string memory = TRY(machine::text_param(params, "memory"));
  if (!start.wake) start.machine.image = TRY(machine::required_text_param(params, "image"));
  if (start.wake) {
    start.machine.restore = MicroVm::Restore{.memory = memory, .devices = {}};
  } else if (!memory.empty()) {
    start.machine.restore = {.memory = memory,
                             .devices = TRY(machine::required_text_param(params, "devices"))};
  } else if (start.machine.agent = TRY(machine::text_param(params, "agent"));
             start.machine.agent.empty()) {
    start.machine.kernel = TRY(machine::required_text_param(params, "kernel"));
    start.machine.unpacked_kernel = TRY(machine::text_param(params, "unpacked_kernel"));
    start.machine.initrd = TRY(machine::required_text_param(params, "initrd"));
  }
  const auto disks = params.find("disks");
  if (disks == params.end() || disks->is_null()) return start;
  if (!disks->is_array() || disks->size() > container_mounts_max + 1)
    return failure(ErrorKind::invalid_argument, "disks: expected a list");
  for (const Json& disk : *disks)
    start.machine.disks.push_back(TRY(machine::decode_attached_disk(disk)));
  return start;
}

}  // namespace

ContainerMethods::ContainerMethods(UringLoop& loop, machine::ControlServer& server,
                                   Container& container,
                                   std::function<void(const std::string& name)> renamed)
    : loop_(loop), container_(container), renamed_(std::move(renamed)) {
  add(server, "container.start", &ContainerMethods::start);
  add(server, "container.prepare", &ContainerMethods::prepare);
  add(server, "container.assume", &ContainerMethods::assume);
  add(server, "container.stop", &ContainerMethods::stop);
  add(server, "container.kill", &ContainerMethods::kill);
  add(server, "container.run_program", &ContainerMethods::run_program);
  add(server, "container.probe", &ContainerMethods::probe);
  add(server, "container.copy_template", &ContainerMethods::copy_template);
  add(server, "container.become_template", &ContainerMethods::become_template);
  add(server, "container.pause", &ContainerMethods::pause);
  add(server, "container.resume", &ContainerMethods::resume);
  add(server, "container.info", &ContainerMethods::info);
}

void ContainerMethods::add(machine::ControlServer& server, const char* name, Method method) {
  server.add(name, [this, method](ControlCall& call) { return run(method, call); });
}

Task<Result<Json>> ContainerMethods::run(Method method, ControlCall& call) {
  if (!is_open_) co_return failure(ErrorKind::precondition, "the keeper is starting or ending");
  co_return co_await (this->*method)(call);
}

Task<Result<Json>> ContainerMethods::start(ControlCall& call) {
  Container::Start start = CO_TRY(decode_start(call.params()));
  CO_TRY(co_await container_.start(std::move(start)));
  co_return co_await info(call);
}

Task<Result<Json>> ContainerMethods::prepare(ControlCall& call) {
  Container::Start start = CO_TRY(decode_start(call.params()));
  const auto record = call.params().find("record");
  if (record == call.params().end())
    co_return failure(ErrorKind::invalid_argument, "record: expected an object");
  ContainerRecord of = CO_TRY(decode_container_record(record->dump()));
  CO_TRY(co_await container_.prepare(std::move(start.machine), std::move(of)));
  co_return co_await info(call);
}

Task<Result<Json>> ContainerMethods::assume(ControlCall& call) {
  const std::string name = CO_TRY(machine::required_text_param(call.params(), "name"));
  CO_TRY(machine::check_name("container", name));
  if (container_.is_waiting()) renamed_(name);
  CO_TRY(co_await container_.assume(name));
  co_return co_await info(call);
}

Task<Result<Json>> ContainerMethods::stop(ControlCall& call) {
  const std::uint64_t timeout_ms =
      CO_TRY(machine::required_number_param(call.params(), "timeout_ms"));
  if (timeout_ms > std::uint64_t{container_stop_timeout_s_max} * 1000)
    co_return failure(ErrorKind::invalid_argument, "timeout_ms: too long");
  CO_TRY(co_await container_.stop(std::chrono::milliseconds(timeout_ms)));
  co_return Json::object();
}

Task<Result<Json>> ContainerMethods::kill(ControlCall& call) {
  const std::uint64_t number = CO_TRY(machine::required_number_param(call.params(), "signal"));
  if (number == 0 || number > signal_max)
    co_return failure(ErrorKind::invalid_argument, "signal: expected a number from 1 to 64");
  CO_TRY(co_await container_.kill(static_cast<unsigned>(number)));
  co_return Json::object();
}

Task<Result<Json>> ContainerMethods::run_program(ControlCall& call) {
  const std::string command = CO_TRY(machine::required_text_param(call.params(), "shell"));
  const std::uint64_t timeout_ms =
      CO_TRY(machine::required_number_param(call.params(), "timeout_ms"));
  if (timeout_ms > std::uint64_t{template_timeout_s_max} * 1000)
    co_return failure(ErrorKind::invalid_argument, "timeout_ms: too long");
  const ProgramResult ran = CO_TRY(co_await run_program_in(
      loop_, container_, {"/bin/sh", "-c", command}, std::chrono::milliseconds(timeout_ms)));
  co_return Json{{"exit_code", ran.end.exit_code}, {"output", ran.output}};
}

Task<Result<Json>> ContainerMethods::probe(ControlCall& call) {
  const std::string text = CO_TRY(machine::text_param(call.params(), "ready"));
  const ReadyProbe wanted = CO_TRY(parse_ready_probe(text));
  const std::string why = CO_TRY(co_await look_whether_ready(loop_, container_, wanted));
  co_return Json{{"ready", why.empty()}, {"why", why}};
}

Task<Result<Json>> ContainerMethods::copy_template(ControlCall& call) {
  const std::string directory = CO_TRY(machine::required_text_param(call.params(), "directory"));
  const machine::MemorySaveFigures figures = CO_TRY(co_await container_.copy_template(directory));
  const auto stopped = std::chrono::duration_cast<std::chrono::microseconds>(figures.stopped);
  co_return Json{{"rounds", figures.rounds},
                 {"bytes", figures.bytes},
                 {"device_bytes", figures.device_bytes},
                 {"stopped_us", stopped.count()}};
}

Task<Result<Json>> ContainerMethods::become_template(ControlCall& call) {
  const std::string path = CO_TRY(machine::required_text_param(call.params(), "devices"));
  const MicroVm::Saved saved = CO_TRY(co_await container_.become_template());
  CO_TRY(machine::write_small_file(path, saved.devices));
  co_return Json{{"memory", saved.memory}, {"device_bytes", saved.devices.size()}};
}

Task<Result<Json>> ContainerMethods::pause(ControlCall& call) {
  const std::string word = CO_TRY(machine::text_param(call.params(), "level"));
  const PauseLevel level = CO_TRY(machine::parse_pause_level(word.empty() ? "frozen" : word));
  const std::uint64_t idle_ms = CO_TRY(machine::number_param(call.params(), "idle_ms")).value_or(0);
  if (idle_ms > idle_ms_max) co_return failure(ErrorKind::invalid_argument, "idle_ms: too long");
  CO_TRY(co_await container_.pause(level, std::chrono::milliseconds(idle_ms)));
  co_return container_.info();
}

Task<Result<Json>> ContainerMethods::resume(ControlCall& /*call*/) {
  CO_TRY(co_await container_.resume());
  co_return Json::object();
}

Task<Result<Json>> ContainerMethods::info(ControlCall& /*call*/) { co_return container_.info(); }

}  // namespace berth::container
