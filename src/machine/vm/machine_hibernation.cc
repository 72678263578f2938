// Machine: hibernated, it is files alone; and how it goes on from them, in another keeper.

#include <algorithm>
#include <csignal>
#include <utility>

#include <fmt/format.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/process.h"
#include "base/units.h"
#include "machine/vm/device_state.h"
#include "machine/vm/machine.h"
#include "machine/vm/machine_hibernation_record.h"
#include "memory/parking.h"

namespace berth::machine {
namespace {

constexpr Duration end_poll = std::chrono::milliseconds(10);
constexpr const char* hibernated_end = "hibernated, as asked";

}  // namespace

// --- Down.

/// It stands still, and stays so whatever comes of this.
Task<Result<void>> Machine::save_everything(Instant begun) {
  const PageFiles files = page_files();
  const memory::GuestProcess process = memory_process();
  const MachineSpecification& specification = record_.specification;
  MachineHibernation record{.saved = {.qemu = qemu_version_,
                                      .accelerator = accelerator(),
                                      .memory = specification.memory,
                                      .pages = {},
                                      .devices = {},
                                      .pause = {},
                                      .programs = programs_of(process.pid)},
                            .machine_type = specification.machine_type,
                            .cpu_model = specification.cpu_model,
                            .cpus = specification.cpus,
                            .disks = start_.disks};
  const auto pages = CO_TRY(co_await offload(loop_, [&] { return files.save(process); }));
  record.saved.pages = pages.name;
  fault_point("suspending.pages-saved");
  auto devices = co_await take_device_state(loop_, *this);
  Result<void> saved = devices ? Result<void>() : failure(devices.error());
  if (saved) {
    record.saved.pause = {
        .level = PauseLevel::hibernated,
        .since = format_time(loop_.wall_time()),
        .took_ms = static_cast<std::uint64_t>(
            std::chrono::duration_cast<std::chrono::milliseconds>(loop_.now() - begun).count()),
        .memory = PageFiles::Report{.before = pages.before, .after = {}}};
    saved = co_await offload(loop_, [&]() -> Result<void> {
      record.saved.pause.page_file_bytes = files.disk_bytes(record.saved.pages);
      TRY(save_devices(directory(), *devices, record.saved));
      fault_point("suspending.devices-saved");
      return write_hibernation_file(directory(), encode(record));
    });
  }
  if (!saved) co_await offload(loop_, [&] { files.remove_unused(process); });
  co_return saved;
}

/// All is saved: QEMU ends, and with it what this keeper is for.
Task<Result<void>> Machine::leave_saved() {
  fault_point("suspending.recorded");
  expect_end(hibernated_end);
  report_("machine_suspended", std::string(to_string(PauseLevel::hibernated)));
  CO_TRY(co_await end_now());
  co_await leave_saved_pages();
  co_return Result<void>{};
}

Task<> Machine::leave_saved_pages() {
  co_await offload(loop_, [files = page_files(), place = directory()] {
    if (const auto record = read_machine_hibernation(place)) files.leave_only(record->saved.pages);
  });
}

/// A keeper has died while it saved one, or before it set one going: what its QEMU has is saved.
Task<> Machine::end_saved() {
  phase_ = Phase::on;
  expected_end_ = hibernated_end;
  if (process_) {
    (void)send_signal(process_->pidfd, SIGKILL);
    while (!has_ended(process_->pidfd)) co_await loop_.sleep(end_poll);
  } else {
    process_ = QemuProcess{};
  }
  co_await after_end();
  co_await leave_saved_pages();
}

// --- Up.

/// What it is to go on from, before anything is started.
Task<Result<void>> Machine::prepare_wake() {
  const MachineHibernation record = CO_TRY(read_machine_hibernation(directory()));
  CO_TRY(check_fits(record, record_.specification, start_.disks));
  record_.specification.memory = record.saved.memory;
  record_.specification.cpus = record.cpus;
  start_.restore = MachineRestore{.memory = {},
                                  .pages = page_files().path_of(record.saved.pages),
                                  .devices = CO_TRY(saved_devices(directory(), record.saved)),
                                  .qemu = record.saved.qemu,
                                  .accelerator = record.saved.accelerator};
  co_return Result<void>{};
}

Result<void> Machine::check_restore(const MachineRestore& restore) const {
  if (restore.qemu == qemu_version_ && restore.accelerator == accelerator()) return {};
  return failure(
      ErrorKind::precondition,
      fmt::format("the saved memory is of QEMU {} ({}), and this is QEMU {} ({}): {}", restore.qemu,
                  restore.accelerator, qemu_version_, accelerator(),
                  restore.pages.empty()
                      ? "revert with --disks-only, or use that QEMU"
                      : "use that QEMU, or give the memory up with `berth vm stop --force`"));
}

Task<Result<void>> Machine::map_pages() {
  co_return co_await offload(
      loop_, [process = memory_process(), pages = start_.restore->pages]() -> Result<void> {
        const auto memory = TRY(memory::GuestMemory::open(process));
        return memory::map_saved(*memory, pages);
      });
}

/// It is hibernated no more: whatever comes now, what was saved is not gone on from again.
Task<Result<void>> Machine::run_again() {
  fault_point("waking.loaded");
  remember();
  CO_TRY(co_await offload(loop_, [place = directory()] { return end_hibernation(place); }));
  remove_saved_devices(directory());
  fault_point("waking.about-to-run");
  co_return Result<void>{};
}

}  // namespace berth::machine
