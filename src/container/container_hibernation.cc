// Container: hibernated, it is files alone; and how it goes on from them, in another keeper.
//
// hibernation.json decides: where it is, all that it names is whole, and a QEMU that is still there
// has nothing that is not in it. It is written last, and gone before virtual CPUs run again.

#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "base/units.h"
#include "container/container.h"
#include "container/hibernation_record.h"

namespace berth::container {
namespace {

constexpr Duration connect_patience = std::chrono::seconds(60);

}  // namespace

// --- Down.

/// It stands still, and stays so whatever comes of this.
Task<Result<void>> Container::save_everything(Instant begun) {
  const PageFiles files = page_files();
  const memory::GuestProcess process = microvm_->memory_process();
  HibernationRecord record{.image = image_,
                           .template_ = template_memory_,
                           .saved = {.qemu = microvm_->qemu_version(),
                                     .accelerator = microvm_->accelerator(),
                                     .memory = record_.specification.memory,
                                     .pages = {},
                                     .devices = {},
                                     .pause = {},
                                     .programs = machine::programs_of(process.pid)},
                           .started_at = started_at_,
                           .log_begins_at = log_begins_at_,
                           .ports = ports_->ports()};
  const auto pages = CO_TRY(co_await offload(loop_, [&] { return files.save(process); }));
  record.saved.pages = pages.name;
  record.saved.pause = {.level = PauseLevel::hibernated,
                        .since = format_time(loop_.wall_time()),
                        .memory = PageFiles::Report{.before = pages.before, .after = {}}};
  auto devices = co_await microvm_->save_devices();
  Result<void> saved = devices ? Result<void>() : failure(devices.error());
  if (saved) {
    record.log_positions = {log_->position(LogStream::output), log_->position(LogStream::errors)};
    saved = co_await offload(loop_, [&] {
      record.saved.pause.page_file_bytes = files.disk_bytes(record.saved.pages);
      record.saved.pause.took_ms = static_cast<std::uint64_t>(
          std::chrono::duration_cast<std::chrono::milliseconds>(loop_.now() - begun).count());
      return write_hibernation(store_.directory(options_.name), record, *devices);
    });
  }
  if (!saved) co_await offload(loop_, [&] { files.remove_unused(process); });
  co_return saved;
}

/// All is saved: QEMU ends, and with it what this keeper is for.
Task<Result<void>> Container::leave_saved() {
  is_hibernated_ = true;
  set_end({}, "it is hibernated: resume it, and attach again");
  report_("container_paused", std::string(to_string(PauseLevel::hibernated)));
  co_await machine_->end();
  while (phase_ != Phase::off && !closing_) co_await changed_.wait();
  co_await leave_saved_pages();
  co_return Result<void>{};
}

Task<> Container::leave_saved_pages() {
  co_await offload(loop_, [files = page_files(), directory = store_.directory(options_.name)] {
    if (const auto record = read_hibernation(directory)) files.leave_only(record->saved.pages);
  });
}

/// A keeper has died while it saved one, or before it set one going: what its QEMU has is saved.
Task<> Container::end_saved() {
  is_hibernated_ = true;
  const auto found = co_await machine_->adopt(memory_id_, template_memory_, true);
  if (!found) log_warning("'{}': {}", options_.name, found.error().message());
  if (machine_->is_on()) co_await machine_->end();
  co_await leave_saved_pages();
  set_end({}, "it is hibernated: resume it, and attach again");
  finish("");
}

// --- Up.

/// Where it fails before it runs, it is still hibernated.
Task<Result<void>> Container::go_on_hibernated(MicroVm::Start machine) {
  is_hibernated_ = true;
  is_waking_ = true;
  const Instant begun = loop_.now();
  auto running = co_await load_hibernated(std::move(machine));
  if (running) running = co_await run_again();
  is_waking_ = false;
  changed_.notify_all();
  if (!running) {
    set_failure(running.error());
    if (is_hibernated_) {
      if (machine_->is_on()) co_await machine_->end();
      while (phase_ != Phase::off && machine_->is_on() && !closing_) co_await changed_.wait();
    } else {
      co_await power_off();
    }
    if (phase_ != Phase::off) finish("");  // QEMU never ran
    co_return failure(
        std::move(running).error().with_context(fmt::format("'{}' cannot go on", options_.name)));
  }
  log_info("it went on after {} ms",
           std::chrono::duration_cast<std::chrono::milliseconds>(loop_.now() - begun).count());
  report_("container_resumed", "");
  tasks_.spawn(note_working_set());
  co_return Result<void>{};
}

/// Its QEMU is there as it was left, and stands still.
Task<Result<void>> Container::load_hibernated(MicroVm::Start machine) {
  const std::string directory = store_.directory(options_.name);
  HibernationRecord record = CO_TRY(read_hibernation(directory));
  if (record.saved.memory != record_.specification.memory) {
    co_return failure(ErrorKind::corrupt, fmt::format("'{}' is of another container",
                                                      machine::hibernation_file(directory)));
  }
  image_ = record.image;
  machine.image = record.image;
  template_memory_ = machine.restore->memory;
  if (template_memory_.empty() != record.template_.empty()) {
    co_return failure(ErrorKind::invalid_argument,
                      "memory: expected that of its template, where it is a clone");
  }
  *machine.restore = {.memory = template_memory_,
                      .devices = CO_TRY(machine::saved_devices(directory, record.saved)),
                      .pages = fmt::format("{}/{}", directory, record.saved.pages),
                      .qemu = record.saved.qemu,
                      .accelerator = record.saved.accelerator,
                      .stands = true};
  record_.specification.ports = std::move(record.ports);
  CO_TRY(ports_->open(record_.specification.ports, std::move(options_.listening)));
  log_begins_at_ = record.log_begins_at;
  started_at_ = record.started_at;
  log_.reset();
  log_.emplace(CO_TRY(ContainerLog::open(log_path(), options_.run.cursor(options_.name),
                                         record_.specification.log_bytes, true)));
  for (const LogStream stream : {LogStream::output, LogStream::errors})
    log_->skip(stream, record.log_positions.at(static_cast<std::size_t>(stream)));
  CO_TRY(save_launch());
  set_phase(Phase::booting);
  CO_TRY(co_await machine_->start(std::move(machine), memory_id_));
  tasks_.spawn(watch_machine());
  dialled_ = CO_TRY(co_await AgentLink::dial(loop_, machine_->agent_socket()));
  co_return Result<void>{};
}

Task<Result<void>> Container::run_again() {
  const std::string directory = store_.directory(options_.name);
  CO_TRY(co_await offload(loop_, [&] { return machine::end_hibernation(directory); }));
  is_hibernated_ = false;
  CO_TRY(co_await machine_->thaw());
  machine::remove_saved_devices(directory);
  CO_TRY(co_await connect(connect_patience, true));
  co_await set_guest_clock();
  CO_TRY(co_await find_processes());
  if (!main_) co_return failure(ErrorKind::precondition, "its main process is gone");
  co_return Result<void>{};
}

}  // namespace berth::container
