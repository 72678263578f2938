#include "control/templates.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/units.h"
#include "container/hibernation_record.h"
#include "container/log_lines.h"
#include "control/container_boot.h"
#include "control/container_creation.h"
#include "control/spawn.h"
#include "machine/layout.h"
#include "machine/small_file.h"

namespace berth::control {
using Json = nlohmann::json;
using container::TemplateRecipe;
using container::TemplateRecord;
using container::TemplateStamp;

namespace {

constexpr Milliseconds probe_interval{50};
constexpr Milliseconds probe_timeout{20'000};
// What a kernel does later, and each clone would do for itself: drivers, sockets, freed memory.
constexpr Milliseconds settling{1'000};
constexpr Milliseconds hold_timeout{120'000};
constexpr Milliseconds copy_timeout{600'000};
constexpr Milliseconds program_grace{10'000};  // beyond its own time
constexpr std::size_t last_lines_max = 5;

std::string builder_of(const std::string& name) { return "template-" + name; }

/// MEMORY_DIR/ID/ram
std::optional<Id128> id_of_memory(const std::string& path) {
  const std::size_t end = path.rfind('/');
  if (end == std::string::npos || end == 0) return std::nullopt;
  const std::size_t begin = path.rfind('/', end - 1) + 1;
  const auto id = Id128::parse(path.substr(begin, end - begin));
  return id ? std::optional(*id) : std::nullopt;
}

/// The last lines of a container's log, on one line.
std::string last_lines(const std::string& path) {
  container::LogLines lines(path);
  std::vector<std::string> last;
  (void)lines.read_all([&last](const container::LogEntry& entry, bool) {
    last.emplace_back(entry.text);
    if (last.size() > last_lines_max) last.erase(last.begin());
  });
  std::string text;
  for (const std::string& line : last) text += fmt::format("{}{}", text.empty() ? "" : " | ", line);
  return text;
}

Result<void> check_stop(const std::shared_ptr<JobProgress>& job) {
  if (job && job->stop().stop_requested())
    return failure(ErrorKind::cancelled, "the template was given up");
  return {};
}

void report(const std::shared_ptr<JobProgress>& job, const char* phase) {
  if (job) job->report(phase, 0, 0);
}

}  // namespace

Templates::Templates(Executor executor, boost::asio::thread_pool& workers, Places places,
                     Containers& containers, const container::ImageStore& images,
                     const container::KernelStore& kernels, EventLog& events)
    : executor_(std::move(executor)),
      workers_(workers),
      places_(std::move(places)),
      containers_(containers),
      images_(images),
      kernels_(kernels),
      events_(events),
      store_(places_.state_dir, places_.memory_dir),
      host_(kernels) {}

Templates::~Templates() = default;

AsyncMutex& Templates::mutex_of(const std::string& name) {
  auto& mutex = mutexes_[name];
  if (!mutex) mutex = std::make_unique<AsyncMutex>(executor_);
  return *mutex;
}

Async<std::vector<TemplateRecord>> Templates::list() {
  co_return co_await on_worker(workers_, [store = &store_] { return store->list(); });
}

Async<Result<TemplateRecord>> Templates::find(std::string name) {
  co_return co_await on_worker(workers_, [store = &store_, name] { return store->find(name); });
}

Async<void> Templates::take_over() {
  for (const container::ContainerRecord& record : co_await containers_.list()) {
    const auto& labels = record.specification.labels;
    const auto of = labels.find(template_label);
    if (of != labels.end() && record.specification.name == builder_of(of->second))
      co_await discard(record.specification.name);
  }
  for (const std::string& name :
       co_await on_worker(workers_, [store = &store_] { return store->names(); }))
    co_await collect(name);
}

// --- What is in use.

/// Memory objects that clones have mapped, or are about to map.
Async<std::set<Id128>> Templates::ids_in_use() {
  std::set<Id128> ids;
  std::erase_if(pins_, [](const auto& pin) { return pin.second.expired(); });
  for (const auto& [id, pin] : pins_) ids.insert(id);
  const container::ContainerRunLayout run{places_.run_dir};
  const container::ContainerStore store(places_.state_dir);
  for (const container::ContainerRecord& record : co_await containers_.list()) {
    if (record.specification.template_name.empty()) continue;
    const std::string& name = record.specification.name;
    for (const std::string& path :
         {run.launch_file(name), machine::hibernation_file(store.directory(name))}) {
      const auto text = machine::read_small_file(path);
      const Json json = text ? Json::parse(*text, nullptr, false) : Json();
      if (const auto id = id_of_memory(json.is_object() ? json.value("template", "") : ""))
        ids.insert(*id);
    }
  }
  co_return ids;
}

/// With its lock held, or at the start.
Async<void> Templates::collect(std::string name) {
  const std::set<Id128> ids = co_await ids_in_use();
  const auto collected = co_await on_worker(
      workers_, [store = &store_, name, ids] { return store->collect(name, ids); });
  if (!collected) log_warning("template {}: {}", name, collected.error().message());
}

Async<std::string> Templates::user_of_image(std::string digest) {
  for (const TemplateRecord& record : co_await list())
    if (record.recipe.specification.image == digest) co_return record.recipe.name;
  co_return std::string();
}

Async<std::vector<machine::MachineMemory>> Templates::running_memory() {
  std::vector<machine::MachineMemory> all;
  for (const TemplateRecord& record : co_await list()) {
    all.push_back({.name = "template " + record.recipe.name,
                   .memory = record.recipe.specification.memory,
                   .overhead = 0});
  }
  co_return all;
}

// --- Making one.

/// What one that is made now would have. The image is what its name leads to now, as long as it
/// leads anywhere.
Async<Result<TemplateStamp>> Templates::stamp_for(TemplateRecipe recipe) {
  co_return co_await on_worker(
      workers_, [host = &host_, images = &images_, recipe]() -> Result<TemplateStamp> {
        TemplateStamp stamp = TRY(host->now());
        stamp.image = recipe.specification.image;
        if (recipe.container.empty()) {
          if (const auto image = images->find(recipe.specification.image_name))
            stamp.image = image->digest;
        }
        return stamp;
      });
}

Async<Result<void>> Templates::check_free(std::string name) {
  const auto known = co_await find(name);
  if (known) {
    co_return failure(ErrorKind::already_exists,
                      fmt::format("there is a template '{}' already", name));
  }
  if (known.error().kind() != ErrorKind::not_found) co_return failure(known.error());
  co_return Result<void>();
}

/// A container that has run for long may be of what the host had then.
Async<Result<void>> Templates::check_started_alike(TemplateRecord record) {
  const std::string name = record.recipe.container;
  const Json info = CO_TRY(co_await containers_.call(name, "container.info", Json::object(), {}));
  const std::string kernel = info.value("kernel", "");
  const std::string qemu = info.value("qemu", "");
  if (kernel != record.stamp.kernel || !record.stamp.qemu.contains(qemu)) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("'{}' runs with kernel {} and QEMU {}, and clones would run with "
                                  "{} and {}: start it again first",
                                  name, kernel, qemu, record.stamp.kernel, record.stamp.qemu));
  }
  co_return Result<void>();
}

Async<Result<TemplateRecord>> Templates::create_from(TemplateRecipe recipe,
                                                     std::shared_ptr<JobProgress> job) {
  CO_TRY(check(recipe));
  const std::string name = recipe.name;
  const auto lock = co_await mutex_of(name).lock();
  CO_TRY(co_await check_free(name));
  TemplateRecord record;
  record.recipe = std::move(recipe);
  record.created_at = format_time(std::chrono::system_clock::now());
  record.id = SystemRandom().id();
  record.stamp = CO_TRY(co_await stamp_for(record.recipe));
  CO_TRY(co_await check_started_alike(record));
  const std::string devices = CO_TRY(co_await on_worker(
      workers_, [store = &store_, name, id = record.id] { return store->begin(name, id); }));
  report(job, "copy");
  const auto copied = co_await containers_.call(
      record.recipe.container, "container.copy_template",
      {{"directory", devices.substr(0, devices.rfind('/'))}}, {.timeout = copy_timeout});
  Result<TemplateRecord> made = failure(ErrorKind::internal, "not copied");
  if (copied) {
    record.built_at = format_time(std::chrono::system_clock::now());
    report(job, "save");
    made = co_await on_worker(workers_,
                              [store = &store_, record] { return store->finish_image(record); });
  } else {
    made = failure(copied.error());
  }
  co_await collect(name);
  if (made) {
    events_.publish(
        "template_created", {.container = record.recipe.container},
        fmt::format("{}: it stood for {} us", name, copied->value("stopped_us", std::int64_t{0})));
  }
  co_return made;
}

Async<Result<TemplateRecord>> Templates::create(TemplateRecipe recipe,
                                                std::shared_ptr<JobProgress> job) {
  CO_TRY(check(recipe));
  const auto lock = co_await mutex_of(recipe.name).lock();
  CO_TRY(co_await check_free(recipe.name));
  TemplateRecord record;
  record.recipe = std::move(recipe);
  record.created_at = format_time(std::chrono::system_clock::now());
  const std::string name = record.recipe.name;
  auto made = co_await build(std::move(record), std::move(job));
  if (made) events_.publish("template_created", {}, name);
  co_return made;
}

/// With its lock held. What fails leaves what was there before.
Async<Result<TemplateRecord>> Templates::build(TemplateRecord record,
                                               std::shared_ptr<JobProgress> job) {
  record.stamp = CO_TRY(co_await stamp_for(record.recipe));
  container::ContainerSpecification wanted = record.recipe.specification;
  wanted.name = builder_of(record.recipe.name);
  wanted.labels[template_label] = record.recipe.name;
  CO_TRY(co_await containers_.create(wanted));
  auto made = co_await boot_and_hold(std::move(record), wanted.name, std::move(job));
  co_await discard(wanted.name);
  co_await collect(wanted.labels[template_label]);
  co_return made;
}

Async<Result<TemplateRecord>> Templates::boot_and_hold(TemplateRecord record, std::string builder,
                                                       std::shared_ptr<JobProgress> job) {
  report(job, "boot");
  container::ContainerSpecification of = record.recipe.specification;
  of.image = record.stamp.image;
  auto boot = CO_TRY(co_await boot_of(workers_, kernels_, images_, std::move(of)));
  CO_TRY(co_await containers_.start(builder, std::move(boot)));
  if (auto ready = co_await make_ready(record.recipe, builder, job); !ready) {
    const std::string words = co_await last_words(builder);
    if (ready.error().kind() == ErrorKind::cancelled || words.empty())
      co_return failure(std::move(ready).error());
    co_return failure(ready.error().kind(),
                      fmt::format("{}. It has written: {}", ready.error().message(), words));
  }
  co_await pause_for(settling);
  CO_TRY(check_stop(job));
  report(job, "hold");
  const Json info =
      CO_TRY(co_await containers_.call(builder, "container.info", Json::object(), {}));
  record.id = CO_TRY(Id128::parse(info.value("memory", "")));
  const std::string name = record.recipe.name;
  const std::string devices = CO_TRY(co_await on_worker(
      workers_, [store = &store_, name, id = record.id] { return store->begin(name, id); }));
  CO_TRY(co_await containers_.call(builder, "container.become_template", {{"devices", devices}},
                                   {.timeout = hold_timeout}));
  record.built_at = format_time(std::chrono::system_clock::now());
  report(job, "save");
  co_return co_await on_worker(workers_,
                               [store = &store_, record] { return store->finish(record); });
}

/// Of one that was to become a template.
Async<Error> Templates::end_of(std::string builder) {
  const Containers::Status status = co_await containers_.status(builder);
  co_return Error(
      ErrorKind::precondition,
      status.last.error.empty()
          ? fmt::format("it ended with exit code {} before it was ready", status.last.exit_code)
          : status.last.error);
}

/// Until the probe says so, and its commands have run.
Async<Result<void>> Templates::make_ready(TemplateRecipe recipe, std::string builder,
                                          std::shared_ptr<JobProgress> job) {
  const std::chrono::seconds patience(recipe.timeout_s);
  const auto deadline = std::chrono::steady_clock::now() + patience;
  report(job, "wait until it is ready");
  while (true) {
    CO_TRY(check_stop(job));
    const auto look = co_await containers_.call(
        builder, "container.probe", {{"ready", recipe.ready}}, {.timeout = probe_timeout});
    if (look && look->value("ready", false)) break;
    if (!containers_.is_on(builder)) co_return failure(co_await end_of(builder));
    if (std::chrono::steady_clock::now() >= deadline) {
      co_return failure(ErrorKind::timed_out,
                        fmt::format("it is not ready after {} s: {}", recipe.timeout_s,
                                    look ? look->value("why", "") : look.error().message()));
    }
    co_await pause_for(probe_interval);
  }
  report(job, "warm");
  for (const std::string& command : recipe.warm) {
    CO_TRY(check_stop(job));
    const auto ran = co_await containers_.call(
        builder, "container.run_program",
        {{"shell", command}, {"timeout_ms", Milliseconds(patience).count()}},
        {.timeout = patience + program_grace});
    if (!ran && !containers_.is_on(builder)) co_return failure(co_await end_of(builder));
    if (!ran) co_return failure(Error(ran.error()).with_context(fmt::format("'{}'", command)));
    if (const auto code = ran->value("exit_code", 0); code != 0) {
      co_return failure(ErrorKind::precondition, fmt::format("'{}' ended with {}: {}", command,
                                                             code, ran->value("output", "")));
    }
  }
  co_return Result<void>();
}

Async<std::string> Templates::last_words(std::string builder) {
  const std::string log = container::ContainerStore(places_.state_dir).log(builder);
  co_return co_await on_worker(workers_, [log] { return last_lines(log); });
}

/// The container that a template was made of, whatever has become of it.
Async<void> Templates::discard(std::string builder) {
  if (containers_.is_on(builder)) (void)co_await containers_.stop(builder, Milliseconds(0));
  const auto removed = co_await containers_.remove(builder);
  if (!removed && removed.error().kind() != ErrorKind::not_found)
    log_warning("{}", removed.error().message());
}

// --- Using one.

Async<Result<Templates::Use>> Templates::use(std::string name) {
  const auto lock = co_await mutex_of(name).lock();
  TemplateRecord record = CO_TRY(co_await find(name));
  const TemplateStamp now = CO_TRY(co_await stamp_for(record.recipe));
  if (const std::string why = difference(record.stamp, now); !why.empty()) {
    if (!record.recipe.container.empty()) {
      co_return failure(ErrorKind::precondition,
                        fmt::format("the template '{}' was made of a container that ran, and does "
                                    "not fit any more: {}. Delete it, and make it again",
                                    name, why));
    }
    events_.publish("template_outdated", {}, fmt::format("{}: {}", name, why));
    if (now.image != record.stamp.image) {
      const auto image = CO_TRY(co_await on_worker(
          workers_, [images = &images_, now] { return images->find(now.image); }));
      record.recipe.specification = CO_TRY(
          complete_container(record.recipe.request, image, record.recipe.specification.image_name));
    }
    auto made = co_await build(std::move(record), nullptr);
    if (!made) {
      co_return failure(std::move(made).error().with_context(
          fmt::format("the template '{}' cannot be made again", name)));
    }
    record = *std::move(made);
    events_.publish("template_rebuilt", {}, name);
  }
  co_return co_await pin(std::move(record));
}

Async<Result<Templates::Use>> Templates::use_making(std::string name, std::string memory) {
  const auto lock = co_await mutex_of(name).lock();
  const auto id = id_of_memory(memory);
  if (!id) co_return failure(ErrorKind::corrupt, fmt::format("'{}' is no memory object", memory));
  co_return co_await pin(CO_TRY(co_await on_worker(
      workers_, [store = &store_, name, id] { return store->making(name, *id); })));
}

/// With its lock held.
Async<Result<Templates::Use>> Templates::pin(TemplateRecord record) {
  std::shared_ptr<void> pin = pins_[record.id].lock();
  if (!pin) pin = std::make_shared<int>();
  pins_[record.id] = pin;
  Use use{.record = record, .memory = {}, .devices = store_.devices(record), .pin = pin};
  use.memory = CO_TRY(
      co_await on_worker(workers_, [store = &store_, record] { return store->memory(record); }));
  co_return use;
}

Containers::Start Templates::start_of(const Use& use) const {
  return {.image = images_.file_system(use.record.stamp.image),
          .kernel = {},
          .initrd = {},
          .memory = use.memory,
          .devices = use.devices};
}

Async<Result<std::string>> Templates::checksum(std::string name) {
  const auto lock = co_await mutex_of(name).lock();
  const TemplateRecord record = CO_TRY(co_await find(name));
  co_return co_await on_worker(workers_,
                               [store = &store_, record] { return store->checksum(record); });
}

Async<Result<void>> Templates::remove(std::string name) {
  const auto lock = co_await mutex_of(name).lock();
  CO_TRY(machine::check_name("template", name));
  for (const container::ContainerRecord& record : co_await containers_.list()) {
    if (record.specification.template_name != name) continue;
    co_return failure(ErrorKind::in_use, fmt::format("the container '{}' is a clone of '{}'",
                                                     record.specification.name, name));
  }
  CO_TRY(co_await on_worker(workers_, [store = &store_, name] { return store->remove(name); }));
  events_.publish("template_deleted", {}, name);
  co_return Result<void>();
}

}  // namespace berth::control
