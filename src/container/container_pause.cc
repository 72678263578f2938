// Container: how it is paused, deeper and deeper, and goes on.

#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "base/log.h"
#include "base/units.h"
#include "container/container.h"
#include "container/guest_clock.h"
#include "machine/vm/hibernation.h"
#include "memory/parking.h"

namespace berth::container {
namespace {

constexpr Duration quiet_patience = std::chrono::seconds(10);  // emulated, on a busy host
constexpr Duration clock_timeout = std::chrono::seconds(20);
constexpr Duration working_set_delay = std::chrono::milliseconds(memory::working_set_delay_ms);
constexpr int quiet_rounds = 2;  // what was on its way when the first ended is there by the second

}  // namespace

PauseLevel Container::pause_level() const {
  if (phase_ != Phase::running || !machine_->is_frozen()) return PauseLevel::none;
  return pause_.level;
}

Task<Result<void>> Container::pause(PauseLevel level, Duration idle_min) {
  ++pauses_;  // from now on whoever wants something of it has it resumed afterwards
  auto paused = co_await pause_in_turn(level, idle_min);
  --pauses_;
  co_return paused;
}

Task<Result<void>> Container::pause_in_turn(PauseLevel level, Duration idle_min) {
  const auto guard = co_await changing_.lock();
  if (phase_ != Phase::running) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' does not run", options_.name));
  }
  if (idle() < idle_min) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' is in use", options_.name));
  }
  const PauseLevel before = pause_level();
  if (level == before) co_return Result<void>{};
  if (level < before) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' is {} already: resume it first",
                                  options_.name, to_string(before)));
  }
  CO_TRY(check_level(level));
  const Instant begun = loop_.now();
  // Frozen without its agent's word it could go no deeper: where nobody has asked for it to stand
  // still, it gets another moment to say so.
  Result<void> paused;
  if (idle_min > Duration::zero() && before != PauseLevel::none && !is_quiet())
    paused = co_await go_up();
  if (paused) paused = co_await go_down(level, begun);
  if (!paused && before == PauseLevel::none && machine_->is_on()) {
    if (const auto resumed = co_await go_up(); !resumed)
      log_error("'{}' stands still: {}", options_.name, resumed.error().message());
  }
  if (!paused) {
    co_return failure(std::move(paused).error().with_context(
        fmt::format("'{}' cannot be {}", options_.name, to_string(level))));
  }
  if (level == PauseLevel::hibernated) co_return co_await leave_saved();
  pause_.took_ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(loop_.now() - begun).count());
  save_pause();
  report_("container_paused", std::string(to_string(level)));
  co_return Result<void>{};
}

Task<Result<void>> Container::go_down(PauseLevel level, Instant begun) {
  if (pause_level() == PauseLevel::none) CO_TRY(co_await stand_still());
  if (level == PauseLevel::frozen) co_return Result<void>{};
  if (microvm_ == nullptr) co_return co_await trim_processes();
  CO_TRY(co_await await_quiet());
  if (level == PauseLevel::hibernated) co_return co_await save_everything(begun);
  pause_ = CO_TRY(
      co_await offload(loop_, [level, files = page_files(), process = microvm_->memory_process()] {
        return machine::move_memory(files, process, level);
      }));
  pause_.since = format_time(loop_.wall_time());
  co_return Result<void>{};
}

Task<Result<void>> Container::stand_still() {
  if (link_ && link_->is_open()) {
    // It may be too busy to say so, and stands still nevertheless: await_quiet() is told.
    if (const auto held = co_await link_->hold(quiet_patience); !held)
      log_warning("'{}' is paused without its word: {}", options_.name, held.error().message());
  }
  if (auto frozen = co_await machine_->freeze(); !frozen) {
    if (link_) link_->release();
    co_return frozen;
  }
  pause_ = {.level = PauseLevel::frozen, .since = format_time(loop_.wall_time()), .memory = {}};
  save_pause();
  co_return Result<void>{};
}

/// Nothing is on its way to the agent, nor from it; as far as there is one to know.
bool Container::is_quiet() const { return !link_ || !link_->is_open() || link_->is_quiet(); }

/// What QEMU's devices write into the guest's memory while that is moved would be lost: nothing is
/// sent to them (stand_still()), and they have done what they had to do.
Task<Result<void>> Container::await_quiet() {
  if (!is_quiet()) {
    co_return failure(ErrorKind::timed_out,
                      "its agent has not answered before it was paused: resume it, and try again");
  }
  const Instant deadline = loop_.now() + quiet_patience;
  for (int rounds = 0; rounds < quiet_rounds; ++rounds) {
    const std::uint64_t received = link_ ? link_->received() : 0;
    // QEMU's main loop has gone around when this is answered.
    CO_TRY(co_await microvm_->command("query-status", machine::Json::object()));
    if (link_ && link_->received() != received) rounds = -1;
    if (loop_.now() > deadline)
      co_return failure(ErrorKind::timed_out, "its guest's words do not end");
  }
  co_return Result<void>{};
}

Task<> Container::bring_forward() {
  co_await offload(loop_, [files = page_files(), qemu = machine_->pid(), own = own_pages_] {
    files.bring_forward(qemu, own);
  });
}

/// Virtual CPUs run again.
Task<Result<void>> Container::go_up() {
  // It need not stand for that.
  if (microvm_ != nullptr && pause_.level > PauseLevel::frozen) tasks_.spawn(bring_forward());
  if (!link_) dialled_ = CO_TRY(co_await AgentLink::dial(loop_, machine_->agent_socket()));
  CO_TRY(co_await machine_->thaw());
  pause_ = {};
  ::unlink(options_.run.pause_file(options_.name).c_str());
  if (link_) link_->release();
  co_return Result<void>{};
}

Task<Result<void>> Container::resume() {
  touch();
  bool was_deep = false;
  {
    const auto guard = co_await changing_.lock();
    if (!is_on() || !machine_->is_frozen()) {
      co_return failure(ErrorKind::precondition,
                        fmt::format("the container '{}' is not paused", options_.name));
    }
    was_deep = microvm_ != nullptr && pause_.level > PauseLevel::frozen;
    CO_TRY(co_await go_up());
  }
  // Its keeper has died while it stood.
  if (!link_) co_await go_on();
  co_await set_guest_clock();
  ports_->wake_up();
  report_("container_resumed", "");
  if (was_deep && !closing_) tasks_.spawn(note_working_set());
  co_return Result<void>{};
}

/// It stood meanwhile.
Task<> Container::set_guest_clock() {
  if (microvm_ == nullptr || !link_ || !link_->is_open()) co_return;
  agent::FieldWriter clock(agent::Operation::set_clock);
  clock.number(agent::Tag::time_ns, time_ns(loop_));
  if (const auto set = co_await link_->request(std::move(clock), clock_timeout); !set)
    log_warning("the guest's clock: {}", set.error().message());
}

Task<Result<void>> Container::awaken() {
  touch();
  while (is_waking_ && !closing_) co_await changed_.wait();
  while (is_paused() && !closing_) {
    auto resumed = co_await resume();
    // Somebody else was first, or it was not paused after all.
    if (!resumed && resumed.error().kind() == ErrorKind::precondition && !is_paused()) break;
    if (!resumed) co_return resumed;
  }
  co_return Result<void>{};
}

void Container::awaken_soon() {
  touch();
  if (is_paused() && !closing_ && !std::exchange(is_awaking_, true))
    tasks_.spawn(awaken_for_port());
}

Task<> Container::awaken_for_port() {
  if (const auto resumed = co_await awaken(); !resumed)
    log_warning("'{}' stays paused: {}", options_.name, resumed.error().message());
  is_awaking_ = false;
}

/// Through a published port.
void Container::note_answer() {
  touch();
  if (!std::exchange(has_answered_, true)) changed_.notify_all();
}

/// When it has answered somebody, or has had time to come to what it needs first: the next time
/// that is read ahead.
Task<> Container::note_working_set() {
  has_answered_ = false;
  {
    Deadline deadline(loop_, working_set_delay, [this] { changed_.notify_all(); });
    while (!deadline.expired() && !has_answered_ && !closing_ && is_on()) co_await changed_.wait();
    co_await deadline.stop();
  }
  const auto guard = co_await changing_.lock();
  if (closing_ || phase_ != Phase::running || machine_->is_frozen()) co_return;
  own_pages_ =
      co_await offload(loop_, [files = page_files(), process = microvm_->memory_process()] {
        return files.note_working_set(process);
      });
}

/// A template's memory is all in its memory object. It stands still afterwards, if it was parked.
Task<Result<void>> Container::bring_memory_back() {
  const PageFiles files = page_files();
  if (files.disk_bytes() == 0) co_return Result<void>{};
  CO_TRY(co_await machine_->freeze());
  co_return co_await offload(
      loop_, [&, process = microvm_->memory_process()] { return files.bring_back(process); });
}

// --- What is known of it.

PageFiles Container::page_files() const { return PageFiles(store_.directory(options_.name)); }

void Container::save_pause() const {
  machine::save_pause_record(options_.run.pause_file(options_.name), pause_);
}

/// Of a QEMU that another keeper has left: what it has paused, and page files that it came to have
/// no more use for.
Task<> Container::adopt_pause() {
  const std::string path = options_.run.pause_file(options_.name);
  pause_ = {};
  if (machine_->is_frozen()) {
    pause_ = machine::load_pause_record(path);
  } else {
    ::unlink(path.c_str());
  }
  if (microvm_ == nullptr) co_return;
  co_await offload(loop_, [files = page_files(), process = microvm_->memory_process()] {
    files.remove_unused(process);
  });
}

/// QEMU is gone.
void Container::forget_pause() {
  pause_ = {};
  ::unlink(options_.run.pause_file(options_.name).c_str());
  if (!is_hibernated_) machine::remove_saved(store_.directory(options_.name));
}

}  // namespace berth::container
