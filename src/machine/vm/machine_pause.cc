// Machine: how it stands still, deeper and deeper, and goes on.

#include <algorithm>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/units.h"
#include "machine/vm/hibernation.h"
#include "machine/vm/machine.h"
#include "memory/parking.h"

namespace berth::machine {
namespace {

constexpr Duration clock_timeout = std::chrono::seconds(20);
constexpr Duration working_set_delay = std::chrono::milliseconds(memory::working_set_delay_ms);
constexpr int quiet_rounds = 2;  // what was on its way when the first ended is there by the second

}  // namespace

PauseLevel Machine::pause_level() const {
  if (phase_ == Phase::off || !wish_.suspended) return PauseLevel::none;
  return std::max(pause_.level, PauseLevel::frozen);
}

memory::GuestProcess Machine::memory_process() const {
  return {.pid = pid(), .memory_file = memory_file_, .channel = memory_channel()};
}

PageFiles Machine::page_files() const { return PageFiles(directory()); }

// --- Down.

Task<Result<void>> Machine::suspend(PauseLevel level) {
  const auto guard = co_await changing_.lock();
  CO_TRY(monitor());
  const PauseLevel before = pause_level();
  if (level == before) co_return Result<void>{};
  if (level < before) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' is {} already: resume it first", options_.name,
                                  to_string(before)));
  }
  if (level > PauseLevel::frozen && !tracks_memory()) {
    co_return failure(
        ErrorKind::unsupported,
        "its memory cannot be moved: QEMU runs without the library that is loaded into it");
  }
  const Instant begun = loop_.now();
  auto suspended = co_await go_down(level, begun);
  if (suspended && level == PauseLevel::hibernated) co_return co_await leave_saved();
  if (!suspended) {
    if (before == PauseLevel::none && phase_ != Phase::off) {
      if (const auto resumed = co_await go_up(); !resumed)
        log_error("'{}' stands still: {}", options_.name, resumed.error().message());
    }
    co_return failure(std::move(suspended).error().with_context(
        fmt::format("the machine '{}' cannot be {}", options_.name, to_string(level))));
  }
  pause_.took_ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(loop_.now() - begun).count());
  save_pause();
  report_("machine_suspended", std::string(to_string(level)));
  co_return Result<void>{};
}

Task<Result<void>> Machine::go_down(PauseLevel level, Instant begun) {
  if (pause_level() == PauseLevel::none) {
    CO_TRY(co_await command("stop", Json::object()));
    wish_.suspended = true;
    note_suspended(PauseLevel::frozen);
    remember();
    fault_point("suspending.stands");
  }
  if (level == PauseLevel::frozen) co_return Result<void>{};
  CO_TRY(co_await await_quiet());
  if (level == PauseLevel::hibernated) co_return co_await save_everything(begun);
  auto moved =
      CO_TRY(co_await offload(loop_, [level, files = page_files(), process = memory_process()] {
        return move_memory(files, process, level);
      }));
  fault_point("suspending.moved");
  pause_ = std::move(moved);
  pause_.since = format_time(loop_.wall_time());
  co_return Result<void>{};
}

/// What QEMU's devices write into the guest's memory while that is moved would be lost. Its disks
/// are drained when its CPUs stand, its networks, its agent's port and its random numbers wait
/// until they run again; what was on its way has come when QEMU's main loop has gone around.
Task<Result<void>> Machine::await_quiet() {
  for (int round = 0; round < quiet_rounds; ++round) CO_TRY(co_await guest_status());
  co_return Result<void>{};
}

void Machine::note_suspended(PauseLevel level) {
  pause_ = {.level = level, .since = format_time(loop_.wall_time()), .memory = {}};
  save_pause();
}

// --- Up.

Task<> Machine::bring_forward() {
  co_await offload(loop_, [files = page_files(), qemu = memory_process().pid, own = own_pages_] {
    files.bring_forward(qemu, own);
  });
}

/// Virtual CPUs run again.
Task<Result<void>> Machine::go_up() {
  // It need not stand for that.
  if (pause_level() > PauseLevel::frozen) tasks_.spawn(bring_forward());
  CO_TRY(co_await command("cont", Json::object()));
  wish_.suspended = false;
  pause_ = {};
  ::unlink(pause_file().c_str());
  remember();
  co_return Result<void>{};
}

Task<Result<void>> Machine::resume() {
  PauseLevel before = PauseLevel::none;
  {
    const auto guard = co_await changing_.lock();
    before = pause_level();
    CO_TRY(co_await go_up());
  }
  report_("machine_resumed", "");
  if (before != PauseLevel::none) went_on(before > PauseLevel::frozen);
  co_return Result<void>{};
}

/// Nobody waits for what is done then.
void Machine::went_on(bool was_deep) {
  if (closing_) return;
  tasks_.spawn(set_guest_clock());
  if (was_deep) tasks_.spawn(note_working_set());
}

/// It stood meanwhile.
Task<> Machine::set_guest_clock() {
  if (!co_await has_agent()) co_return;
  if (const auto set = co_await agent_->set_time(loop_.wall_time(), clock_timeout); !set)
    log_warning("the guest's clock: {}", set.error().message());
}

/// Once it has had time to come to what it needs first: the next time that is read ahead.
Task<> Machine::note_working_set() {
  {
    Deadline deadline(loop_, working_set_delay, [this] { changed_.notify_all(); });
    while (!deadline.expired() && !closing_ && is_on()) co_await changed_.wait();
    co_await deadline.stop();
  }
  const auto guard = co_await changing_.lock();
  if (closing_ || phase_ != Phase::on || pause_level() != PauseLevel::none) co_return;
  own_pages_ = co_await offload(loop_, [files = page_files(), process = memory_process()] {
    return files.note_working_set(process);
  });
}

/// A machine that runs stands for a piece of it at a time.
Task<Result<void>> Machine::bring_memory_back() {
  const PageFiles files = page_files();
  const memory::GuestProcess process = memory_process();
  if (!co_await offload(loop_, [&] { return files.any(); })) co_return Result<void>{};
  const bool runs = pause_level() == PauseLevel::none;
  for (bool is_all_there = false; !is_all_there;) {
    CO_TRY(co_await offload(loop_, [&] { return files.prepare_piece(process); }));
    if (runs) CO_TRY(co_await command("stop", Json::object()));
    fault_point("returning.stands");
    Result<bool> brought = co_await bring_piece_back();
    if (runs) CO_TRY(co_await command("cont", Json::object()));
    fault_point("returning.piece");
    is_all_there = CO_TRY(std::move(brought));
  }
  co_await offload(loop_, [&] { files.remove_unused(process); });
  if (!runs) note_suspended(PauseLevel::frozen);
  co_return Result<void>{};
}

Task<Result<bool>> Machine::bring_piece_back() {
  CO_TRY(co_await await_quiet());
  co_return co_await offload(loop_, [files = page_files(), process = memory_process()] {
    return files.bring_piece_back(process);
  });
}

// --- What is known of it.

std::string Machine::memory_channel() const { return qemu_directory() + "/memory.sock"; }
std::string Machine::pause_file() const { return run_directory() + "/pause.json"; }

void Machine::save_pause() const { save_pause_record(pause_file(), pause_); }

/// Of a QEMU that another keeper has left: what it has paused, and page files that it came to have
/// no more use for. When this has returned, nothing that it had asked for is under way in QEMU.
Task<> Machine::adopt_pause() {
  pause_ = {};
  if (wish_.suspended) {
    pause_ = load_pause_record(pause_file());
  } else {
    ::unlink(pause_file().c_str());
  }
  co_await offload(
      loop_, [files = page_files(), process = memory_process()] { files.remove_unused(process); });
}

/// QEMU is gone.
void Machine::forget_pause() {
  pause_ = {};
  ::unlink(pause_file().c_str());
  if (!is_hibernated(directory())) remove_saved(directory());
}

}  // namespace berth::machine
