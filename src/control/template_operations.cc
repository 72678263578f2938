// template.* and container.clone: the actions, and what carries them out.

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/action_list.h"
#include "control/container_creation.h"
#include "control/operations.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using Place = Parameter::Place;
using Type = Parameter::Type;
using container::ContainerSpecification;
using container::TemplateRecipe;
using container::TemplateRecord;

constexpr std::uint64_t clones_max = 1000;  // of one request
constexpr std::size_t clones_at_once = 4;

Parameter template_in_path() {
  return {"template", Place::path, Type::text, true, "Name of the template", {}};
}

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Async<Json> shown(Services& services, TemplateRecord record) {
  Json clones = Json::array();
  for (const container::ContainerRecord& each : co_await services.containers.list())
    if (each.specification.template_name == record.recipe.name)
      clones.push_back(each.specification.name);
  Json json = encode(record);
  for (const char* kept : {"format", "version", "request"}) json.erase(kept);
  json["clones"] = std::move(clones);
  json["waiting"] = services.pool.size(record.recipe.name);
  co_return json;
}

Async<Result<Json>> run_create(Services& services, TemplateRecipe recipe,
                               std::shared_ptr<JobProgress> job) {
  const bool runs = !recipe.container.empty();
  const TemplateRecord record =
      CO_TRY(runs ? co_await services.templates.create_from(std::move(recipe), std::move(job))
                  : co_await services.templates.create(std::move(recipe), std::move(job)));
  services.pool.fill(record.recipe.name);
  co_return co_await shown(services, record);
}

Result<void> check_is_machine(const ContainerSpecification& container) {
  if (container.isolation == ContainerSpecification::Isolation::machine) return {};
  return failure(ErrorKind::unsupported,
                 fmt::format("'{}' runs in the host's kernel (--isolation process): only a microVM "
                             "can become a template, and be cloned",
                             container.name));
}

Async<Result<ContainerSpecification>> specification_of(Services& services, std::string reference,
                                                       TemplateRecipe recipe) {
  if (recipe.request.contains("name"))
    co_return failure(ErrorKind::invalid_argument, "specification.name: a template has its own");
  const auto image = CO_TRY(co_await on_worker(
      services.workers, [store = &services.images, reference] { return store->find(reference); }));
  recipe.request["name"] = recipe.name;
  ContainerSpecification wanted = CO_TRY(complete_container(recipe.request, image, reference));
  CO_TRY(check_is_machine(wanted));
  co_return wanted;
}

Async<Result<ContainerSpecification>> specification_from(Services& services, std::string container,
                                                         TemplateRecipe recipe) {
  if (!recipe.request.empty() || !recipe.ready.empty() || !recipe.warm.empty()) {
    co_return failure(ErrorKind::invalid_argument,
                      "a container that runs is what it is: neither `specification` nor `ready` "
                      "nor `warm` go with it");
  }
  ContainerSpecification is = CO_TRY(co_await services.containers.find(container)).specification;
  CO_TRY(check_is_machine(is));
  is.ports.clear();
  is.remove = false;
  co_return is;
}

Async<Result<Json>> template_create(Services& services, Json params) {
  const std::string reference = text(params, "image");
  TemplateRecipe recipe{.name = text(params, "name"),
                        .specification = {},
                        .ready = text(params, "ready"),
                        .warm = params.value("warm", std::vector<std::string>()),
                        .timeout_s = container::template_timeout_s_default,
                        .pool = container::template_pool_default,
                        .container = {},
                        .request = params.value("specification", Json::object())};
  const std::uint64_t timeout_s = params.value("timeout_s", std::uint64_t{recipe.timeout_s});
  if (timeout_s > container::template_timeout_s_max)
    co_return failure(ErrorKind::invalid_argument, "timeout_s: too long");
  recipe.timeout_s = static_cast<std::uint32_t>(timeout_s);
  const std::uint64_t pool = params.value("pool", std::uint64_t{recipe.pool});
  if (pool > container::template_pool_max)
    co_return failure(ErrorKind::invalid_argument,
                      fmt::format("pool: up to {}", container::template_pool_max));
  recipe.pool = static_cast<std::uint32_t>(pool);
  const std::string container = text(params, "container");
  if (reference.empty() == container.empty())
    co_return failure(ErrorKind::invalid_argument, "give an image, or a container");
  if (reference.empty()) {
    recipe.specification = CO_TRY(co_await specification_from(services, container, recipe));
    recipe.container = recipe.specification.name;
  } else {
    recipe.specification = CO_TRY(co_await specification_of(services, reference, recipe));
  }
  CO_TRY(check(recipe));
  co_return co_await services.jobs.start(
      {.kind = "template.create", .target = recipe.name, .volume = {}},
      [&services, recipe](std::shared_ptr<JobProgress> job) {
        return run_create(services, recipe, std::move(job));
      });
}

Async<Result<Json>> template_list(Services& services, Json /*params*/) {
  Json list = Json::array();
  for (const TemplateRecord& record : co_await services.templates.list()) {
    const Json json = co_await shown(services, record);
    list.push_back({{"name", json["name"]},
                    {"image", record.recipe.specification.image},
                    {"image_name", record.recipe.specification.image_name},
                    {"memory", record.recipe.specification.memory},
                    {"memory_bytes", record.memory_bytes},
                    {"built_at", record.built_at},
                    {"clones", json["clones"].size()}});
  }
  co_return Json{{"templates", std::move(list)}};
}

Async<Result<Json>> template_inspect(Services& services, Json params) {
  const TemplateRecord record = CO_TRY(co_await services.templates.find(text(params, "template")));
  co_return co_await shown(services, record);
}

Async<Result<Json>> template_check(Services& services, Json params) {
  const std::string name = text(params, "template");
  const TemplateRecord record = CO_TRY(co_await services.templates.find(name));
  const std::string now = CO_TRY(co_await services.templates.checksum(name));
  co_return Json{{"name", name},
                 {"memory_checksum", record.memory_checksum},
                 {"found", now},
                 {"untouched", now == record.memory_checksum}};
}

Async<Result<Json>> template_delete(Services& services, Json params) {
  const std::string name = text(params, "template");
  CO_TRY(co_await services.templates.find(name));
  co_await services.pool.empty(name);
  const auto removed = co_await services.templates.remove(name);
  services.pool.fill(name);  // it may still be there
  CO_TRY(removed);
  co_return Json::object();
}

// --- Clones.

/// One that waits in the pool, if there is one; else a new one.
Async<Result<void>> start_clone(Services& services, container::ContainerRecord record,
                                Containers::Start start,
                                std::optional<Containers::Waiting> waiting) {
  if (waiting) {
    auto assumed = co_await services.containers.assume(record, *std::move(waiting));
    if (assumed || assumed.error().kind() == ErrorKind::in_use) co_return assumed;
    services.events.publish("pool_failed", {.container = record.specification.name},
                            assumed.error().message());
  }
  co_return co_await services.containers.start(record.specification.name, std::move(start));
}

/// One that could not be started is not there.
Async<Result<Json>> make_clone(Services& services, ContainerSpecification wanted) {
  const ClonePool::Pause pause(services.pool);
  std::optional<Containers::Identity> identity;
  // What it maps stays until it runs.
  const Templates::Use use = CO_TRY(co_await services.templates.use(wanted.template_name));
  std::optional<Containers::Waiting> waiting = services.pool.take(use.record);
  services.pool.fill(wanted.template_name);
  if (waiting) identity = waiting->identity;
  const auto made = co_await services.containers.create(wanted, identity);
  if (!made) {
    if (waiting) co_await services.containers.discard(*std::move(waiting));
    co_return failure(made.error());
  }
  const container::ContainerRecord& record = *made;
  const std::string name = record.specification.name;
  const auto started =
      co_await start_clone(services, record, services.templates.start_of(use), std::move(waiting));
  if (!started) {
    if (services.containers.is_on(name))
      (void)co_await services.containers.stop(name, Milliseconds(0));
    (void)co_await services.containers.remove(name);
    co_return failure(started.error());
  }
  services.events.publish("container_created", {.container = name},
                          "a clone of " + record.specification.template_name);
  co_return co_await shown_container(services, record);
}

struct Batch {
  std::vector<ContainerSpecification> wanted;
  std::size_t next = 0;
  Json made = Json::array();
  std::optional<Error> error;  // the first; nothing is begun after it
};

Async<bool> make_next_clones(Services& services, std::shared_ptr<Batch> batch) {
  while (batch->next < batch->wanted.size() && !batch->error) {
    const std::size_t number = batch->next++;
    auto made = co_await make_clone(services, batch->wanted[number]);
    if (made) {
      batch->made.push_back(*std::move(made));
    } else if (!batch->error) {
      batch->error = std::move(made).error();
    }
  }
  co_return true;
}

Async<Result<Json>> container_clone(Services& services, Json params) {
  const std::string name = text(params, "template");
  const TemplateRecord record = CO_TRY(co_await services.templates.find(name));
  const std::uint64_t count = params.value("count", std::uint64_t{1});
  if (count == 0 || count > clones_max)
    co_return failure(ErrorKind::invalid_argument, fmt::format("count: 1 to {}", clones_max));
  const auto batch = std::make_shared<Batch>();
  batch->wanted = CO_TRY(clone_specifications(params.value("specification", Json::object()),
                                              record.recipe, static_cast<std::size_t>(count)));
  std::vector<Async<bool>> workers;
  for (std::size_t i = 0; i < std::min<std::size_t>(clones_at_once, count); ++i)
    workers.push_back(make_next_clones(services, batch));
  co_await gather(std::move(workers));
  if (batch->error && batch->made.empty()) co_return failure(*batch->error);
  co_return Json{{"containers", std::move(batch->made)},
                 {"error", batch->error ? batch->error->message() : std::string()}};
}

}  // namespace

std::vector<Action> template_actions() {
  return {
      {.name = "template.create",
       .method = Method::post,
       .path = "/v1/templates",
       .summary = "Start a container of an image once, or take one that runs, and hold its memory "
                  "and its devices for clones",
       .precondition =
           "The image or container is there (not_found), the name is free (already_exists), its "
           "memory fits beside what runs (limit), and it gets ready in time "
           "(timed_out, precondition)",
       .answer = Answer::job,
       .result = "Template",
       .parameters =
           {{"name", Place::body, Type::text, true, "Name of the template", {}},
            {"image", Place::body, Type::text, false, "Name or digest of the image", {}},
            {"container",
             Place::body,
             Type::text,
             false,
             "In its place: a container that runs, and runs on; it stands for an instant. Such a "
             "template cannot be made again when the host changes",
             {}},
            {"ready",
             Place::body,
             Type::text,
             false,
             "What says that it is ready: tcp:PORT, http:PORT/PATH, log:TEXT or exec:COMMAND; "
             "when left out, that its command runs",
             {}},
            {"warm",
             Place::body,
             Type::texts,
             false,
             "Shell commands that are run in it once it is ready, so that clones find done what "
             "they do",
             {}},
            {"timeout_s",
             Place::body,
             Type::count,
             false,
             "Seconds until it is ready, and for each command; 120 when left out",
             {}},
            {"pool",
             Place::body,
             Type::count,
             false,
             "How many clones of it wait for a name, up to 256; 2 when left out",
             {}},
            {"specification",
             Place::body,
             Type::object,
             false,
             "As for container.create; neither ports nor volumes",
             {}}},
       .errors = {ErrorKind::not_found, ErrorKind::already_exists, ErrorKind::precondition,
                  ErrorKind::timed_out, ErrorKind::limit, ErrorKind::no_space,
                  ErrorKind::disconnected, ErrorKind::unsupported}},
      {.name = "template.list",
       .method = Method::get,
       .path = "/v1/templates",
       .summary = "List the templates",
       .result = "TemplateList"},
      {.name = "template.inspect",
       .method = Method::get,
       .path = "/v1/templates/{template}",
       .summary = "Show a template",
       .result = "Template",
       .parameters = {template_in_path()},
       .errors = {ErrorKind::not_found}},
      {.name = "template.check",
       .method = Method::get,
       .path = "/v1/templates/{template}/check",
       .summary = "Read a template's memory, and say whether it is what it was when it was made",
       .result = "TemplateCheck",
       .parameters = {template_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::no_space, ErrorKind::limit}},
      {.name = "template.delete",
       .method = Method::remove,
       .path = "/v1/templates/{template}",
       .summary = "Delete a template",
       .precondition = "No container is a clone of it (in_use)",
       .result = "Nothing",
       .parameters = {template_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::in_use}},
      {.name = "container.clone",
       .method = Method::post,
       .path = "/v1/templates/{template}/clones",
       .summary = "Make containers that go on where their template was, each with an identity of "
                  "its own, and run them",
       .precondition = "The names and ports are free (already_exists, in_use), and each fits "
                       "beside what runs (limit); a template that does not fit to this host any "
                       "more is made again first, if it can be (precondition)",
       .answer = Answer::created,
       .result = "ContainerClones",
       .parameters =
           {template_in_path(),
            {"count", Place::body, Type::count, false, "How many, up to 1000; 1 when left out", {}},
            {"specification",
             Place::body,
             Type::object,
             false,
             "Members of a ContainerSpecification that are the clone's own: name (with -1, -2 and "
             "so on where there are several), hostname, ports, labels, remove, stop_signal, "
             "stop_timeout_s, log_bytes, park_after",
             {}}},
       .errors = {ErrorKind::not_found, ErrorKind::already_exists, ErrorKind::in_use,
                  ErrorKind::limit, ErrorKind::precondition, ErrorKind::timed_out,
                  ErrorKind::disconnected, ErrorKind::no_space}},
  };
}

HandlerTable template_handlers() {
  return {{"template.create", template_create},   {"template.list", template_list},
          {"template.inspect", template_inspect}, {"template.check", template_check},
          {"template.delete", template_delete},   {"container.clone", container_clone}};
}

}  // namespace berth::control
