// container.*: what carries the actions out.

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/socket_address.h"
#include "container/guest_network.h"
#include "control/container_boot.h"
#include "control/container_creation.h"
#include "control/operations.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using container::ContainerRecord;

constexpr Milliseconds command_timeout{30'000};

Json idle_seconds(const Containers::Status& status) {
  if (!status.info.is_object()) return {};
  return status.info.value("idle_ms", std::uint64_t{0}) / 1000;
}

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Json exit_code_of(const Containers::Status& status) {
  return status.last.ended && status.info.is_null() ? Json(status.last.exit_code) : Json();
}

Json ports_of(const ContainerRecord& record, const Containers::Status& status) {
  return status.info.is_object() ? status.info["ports"]
                                 : container::encode_ports(record.specification.ports);
}

Async<Json> shown(Services& services, ContainerRecord record) {
  return shown_container(services, std::move(record));
}

Async<Result<ContainerRecord>> find(Services& services, Json params) {
  co_return co_await services.containers.find(text(params, "container"));
}

Async<Result<void>> check_volumes(Services& services, container::ContainerSpecification wanted) {
  if (!wanted.overlay.empty()) CO_TRY(services.volumes.check_exists(wanted.overlay));
  for (const container::ContainerMount& mount : wanted.mounts)
    CO_TRY(services.volumes.check_exists(mount.volume));
  co_return Result<void>();
}

Async<Result<Json>> container_create(Services& services, Json params) {
  const std::string reference = text(params, "image");
  const auto image = CO_TRY(co_await on_worker(
      services.workers, [store = &services.images, reference] { return store->find(reference); }));
  const auto wanted =
      CO_TRY(complete_container(params.value("specification", Json::object()), image, reference));
  CO_TRY(co_await check_volumes(services, wanted));
  const ContainerRecord record = CO_TRY(co_await services.containers.create(wanted));
  services.events.publish("container_created", {.container = wanted.name}, reference);
  co_return co_await shown(services, record);
}

Async<Result<Json>> container_start(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  CO_TRY(co_await start_container(services, record, params.value("hold", false)));
  co_return co_await shown(services, record);
}

/// One that was to be removed is gone; it is shown as it was.
Async<Json> shown_after(Services& services, ContainerRecord record) {
  const auto after = co_await services.containers.find(record.specification.name);
  co_return co_await shown(services, after ? *after : record);
}

Async<Result<Json>> container_stop(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  const std::uint64_t timeout_s =
      params.value("timeout_s", std::uint64_t{record.specification.stop_timeout_s});
  if (timeout_s > container::container_stop_timeout_s_max)
    co_return failure(ErrorKind::invalid_argument, "timeout_s: too long");
  if (services.containers.is_hibernated(record.specification.name)) {
    if (timeout_s == 0 && !record.specification.has_volumes()) {
      CO_TRY(co_await services.containers.discard_hibernated(record.specification.name));
      co_return co_await shown_after(services, record);
    }
    CO_TRY(co_await awaken_container(services, record));
  }
  CO_TRY(co_await services.containers.stop(record.specification.name,
                                           std::chrono::seconds(timeout_s)));
  co_return co_await shown_after(services, record);
}

Async<Result<Json>> container_kill(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  const std::string word = params.value("signal", std::string("SIGKILL"));
  const unsigned number = CO_TRY(container::signal_number(word));
  CO_TRY(co_await awaken_container(services, record));
  CO_TRY(co_await services.containers.call(record.specification.name, "container.kill",
                                           {{"signal", number}}, {.timeout = command_timeout}));
  co_return co_await shown(services, record);
}

Async<Result<Json>> container_pause(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  const std::string& name = record.specification.name;
  const std::string word = params.value("level", std::string("frozen"));
  const machine::PauseLevel level = CO_TRY(machine::parse_pause_level(word));
  CO_TRY(co_await services.containers.pause(name, level));
  co_return co_await shown(services, record);
}

Async<Result<Json>> container_resume(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  const std::string& name = record.specification.name;
  if (services.containers.is_hibernated(name)) {
    CO_TRY(co_await awaken_container(services, record));
  } else {
    CO_TRY(co_await services.containers.call(name, "container.resume", Json::object(),
                                             {.timeout = command_timeout}));
  }
  co_return co_await shown(services, record);
}

Async<Result<Json>> container_list(Services& services, Json /*params*/) {
  Json containers = Json::array();
  for (const ContainerRecord& record : co_await services.containers.list()) {
    const container::ContainerSpecification& is = record.specification;
    const Containers::Status status = co_await services.containers.status(is.name);
    containers.push_back({{"name", is.name},
                          {"id", record.id.to_string()},
                          {"image", is.image},
                          {"image_name", is.image_name},
                          {"command", is.arguments},
                          {"state", status.state},
                          {"exit_code", exit_code_of(status)},
                          {"created_at", record.created_at},
                          {"started_at", status.last.started_at},
                          {"idle_s", idle_seconds(status)},
                          {"ports", ports_of(record, status)}});
  }
  co_return Json{{"containers", std::move(containers)}};
}

Async<Result<Json>> container_inspect(Services& services, Json params) {
  co_return co_await shown(services, CO_TRY(co_await find(services, params)));
}

Async<Result<Json>> container_delete(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  const std::string& name = record.specification.name;
  if (params.value("force", false)) {
    const auto stopped = services.containers.is_hibernated(name)
                             ? co_await services.containers.discard_hibernated(name)
                             : co_await services.containers.stop(name, Milliseconds(0));
    if (!stopped && stopped.error().kind() != ErrorKind::precondition)
      co_return failure(stopped.error());
  }
  const auto removed = co_await services.containers.remove(name);
  // One that goes by itself when it has ended may have done so.
  if (!removed && !(record.specification.remove && removed.error().kind() == ErrorKind::not_found))
    co_return failure(removed.error());
  co_return Json::object();
}

}  // namespace

Async<Json> shown_container(Services& services, ContainerRecord record) {
  const std::string& name = record.specification.name;
  const Containers::Status status = co_await services.containers.status(name);
  const auto optional = [&status](const char* member) {
    return status.info.is_object() ? status.info.value(member, Json()) : Json();
  };
  const container::ContainerRunLayout run{services.run_dir};
  const auto address = container::guest_network::address_of(record);
  const bool runs = status.info.is_object();
  const bool has_keeper = runs && status.state != "hibernated";
  co_return Json{
      {"name", name},
      {"id", record.id.to_string()},
      {"state", status.state},
      {"created_at", record.created_at},
      {"started_at", runs ? status.info.value("started_at", "") : status.last.started_at},
      {"finished_at", runs ? std::string() : status.last.finished_at},
      {"exit_code", exit_code_of(status)},
      {"error", runs ? std::string() : status.last.error},
      {"pid", optional("pid")},
      {"accelerator", optional("accelerator")},
      {"kernel", optional("kernel")},
      {"devices_loaded_us", optional("devices_loaded_us")},
      {"memory_used", optional("memory_used")},
      {"pause", optional("pause")},
      {"idle_since", optional("idle_since")},
      {"idle_s", idle_seconds(status)},
      {"address", address ? Json(*address) : Json()},
      {"ports", ports_of(record, status)},
      {"attach", has_keeper ? Json(run.attach_socket(name)) : Json()},
      {"log", container::ContainerStore(services.state_dir).log(name)},
      {"specification", encode(record.specification)}};
}

Async<Result<void>> start_container(Services& services, ContainerRecord record, bool hold) {
  const container::ContainerSpecification& is = record.specification;
  if (is.template_name.empty()) {
    auto start = CO_TRY(co_await boot_of(services.workers, services.kernels, services.images, is));
    start.hold = hold;
    co_return co_await services.containers.start(is.name, std::move(start));
  }
  // One that has ended is a clone again, of what its template is now.
  const Templates::Use use = CO_TRY(co_await services.templates.use(is.template_name));
  co_return co_await services.containers.start(is.name, services.templates.start_of(use));
}

Async<Result<void>> awaken_container(Services& services, ContainerRecord record) {
  const std::string& name = record.specification.name;
  if (!services.containers.is_hibernated(name)) co_return Result<void>();
  const auto saved = CO_TRY(co_await services.containers.hibernation(name));
  Containers::Start start{.image = saved.image, .kernel = {}, .initrd = {}, .wake = true};
  std::shared_ptr<void> pin;
  if (!saved.template_.empty()) {
    const Templates::Use use = CO_TRY(co_await services.templates.use_making(
        record.specification.template_name, saved.template_));
    start.memory = use.memory;
    pin = use.pin;
  }
  auto woken = co_await services.containers.start(name, std::move(start));
  // Somebody else was first.
  if (!woken && services.containers.is_on(name)) co_return Result<void>();
  co_return woken;
}

Async<Result<Fd>> container_attach(Services& services, Json params) {
  const ContainerRecord record = CO_TRY(co_await find(services, params));
  const std::string& name = record.specification.name;
  CO_TRY(co_await awaken_container(services, record));
  const auto not_running =
      failure(ErrorKind::precondition, fmt::format("the container '{}' does not run", name));
  if (!services.containers.is_on(name)) co_return not_running;
  const container::ContainerRunLayout run{services.run_dir};
  auto connected = co_await on_worker(
      services.workers, [path = run.attach_socket(name)] { return connect_unix(path); });
  // Its keeper takes the socket away when it ends.
  if (!connected && (connected.error().kind() == ErrorKind::not_found ||
                     connected.error().kind() == ErrorKind::disconnected))
    co_return not_running;
  co_return connected;
}

Async<void> awaken_for_port(Services& services, std::string name) {
  const auto record = co_await services.containers.find(name);
  const auto woken =
      record ? co_await awaken_container(services, *record) : failure(record.error());
  if (woken) co_return;
  services.events.publish("container_resume_failed", {.container = name}, woken.error().message());
  services.containers.refuse_wanted(name);
}

HandlerTable container_handlers() {
  return {{"container.create", container_create}, {"container.start", container_start},
          {"container.stop", container_stop},     {"container.kill", container_kill},
          {"container.pause", container_pause},   {"container.resume", container_resume},
          {"container.list", container_list},     {"container.inspect", container_inspect},
          {"container.delete", container_delete}};
}

}  // namespace berth::control
