// Clones that wait for a name, in a pool: all that takes time is done before somebody asks.

#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/directories.h"
#include "base/log.h"
#include "base/units.h"
#include "container/container.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"

namespace berth::container {
namespace {

using agent::FieldWriter;
using agent::Operation;
using agent::Tag;
using machine::Json;

constexpr Duration rehearsal_patience = std::chrono::seconds(20);
constexpr Duration stand_in_patience = std::chrono::seconds(2);  // its end takes some 30 ms
constexpr Duration look_interval = std::chrono::milliseconds(10);
// What the kernel does later: what was freed under RCU, what was begun by the first connection.
constexpr Duration settling = std::chrono::milliseconds(300);
constexpr Duration prepare_patience = std::chrono::seconds(120);

}  // namespace

Task<Result<void>> Container::prepare(MicroVm::Start machine, ContainerRecord record) {
  const auto guard = co_await changing_.lock();
  if (phase_ != Phase::off || end_ || closing_ || !machine.restore)
    co_return failure(ErrorKind::precondition, "only a clone can wait, and only once");
  record_ = std::move(record);
  CO_TRY(check_start(machine));
  make_machine();
  CO_TRY(make_directories(options_.run.container(options_.name)));
  open_ports();
  memory_id_ = SystemRandom().id();
  image_ = machine.image;
  is_clone_ = true;
  is_waiting_ = true;
  template_memory_ = machine.restore->memory;
  CO_TRY(save_launch());
  set_phase(Phase::booting);
  auto prepared = co_await prepare_clone(std::move(machine));
  if (!prepared) {
    if (machine_->is_on()) co_await machine_->end();
    if (phase_ != Phase::off) finish("");
  }
  co_return prepared;
}

/// Nothing of the workload runs before assume(), nor does its template's identity stay: what is
/// done here is done again then, with code that is translated and pages that are its own by now.
Task<Result<void>> Container::prepare_clone(MicroVm::Start machine) {
  CO_TRY(co_await machine_->start(std::move(machine), memory_id_));
  tasks_.spawn(watch_machine());
  CO_TRY(co_await connect(prepare_patience, true));
  CO_TRY(co_await rehearse());
  tasks_.spawn(settle());
  co_return Result<void>{};
}

/// It can be had from now on; and stands, once its kernel has done what it does later.
Task<> Container::settle() {
  Deadline deadline(loop_, settling, [this] { changed_.notify_all(); });
  while (!closing_ && !deadline.expired()) co_await changed_.wait();
  co_await deadline.stop();
  const auto guard = co_await changing_.lock();
  if (!is_waiting_ || !machine_->is_on() || closing_) co_return;
  const auto frozen = co_await machine_->freeze();
  if (frozen || !machine_->is_on()) co_return;
  log_warning("{} cannot be stopped while it waits: {}", options_.name, frozen.error().message());
  co_await machine_->end();
}

/// What a clone does first, its identity included, by a process of the agent's own
/// (agent/program/rehearsal.h): it is done sooner when it has been done before.
Task<Result<void>> Container::rehearse() {
  const std::uint64_t ended_before = CO_TRY(co_await stand_ins_ended());
  FieldWriter request(Operation::rehearse);
  add_identity(request);
  add_network(request);
  const AgentAnswer answer =
      CO_TRY(co_await link_->request(std::move(request), rehearsal_patience));
  const std::uint64_t port = CO_TRY(answer.fields().number(Tag::port));
  // A guest that cannot be asked is a clone all the same.
  co_await ask_stand_in(port);
  const Instant until = loop_.now() + stand_in_patience;
  while (CO_TRY(co_await stand_ins_ended()) == ended_before && loop_.now() < until)
    co_await loop_.sleep(look_interval);
  co_return Result<void>{};
}

/// The agent has no other children while the workload is frozen.
Task<Result<std::uint64_t>> Container::stand_ins_ended() {
  const AgentAnswer answer =
      CO_TRY(co_await link_->request(FieldWriter(Operation::list), rehearsal_patience));
  co_return answer.fields().number(Tag::orphans_reaped);
}

/// As a client of a published port would, until there is an answer.
Task<> Container::ask_stand_in(std::uint64_t port) {
  const std::uint32_t number = ports_->next_stream();
  Event changed(loop_);
  const auto stream = [this, number] { return link_->is_open() ? link_->stream(number) : nullptr; };
  const auto connected = co_await link_->connect_stream(
      number, port, [&changed] { changed.notify_all(); }, rehearsal_patience);
  if (connected && stream() != nullptr) {
    stream()->out->add(as_bytes("GET / HTTP/1.1\r\n\r\n"));
    link_->wake();
    Deadline deadline(loop_, rehearsal_patience, [&changed] { changed.notify_all(); });
    while (stream() != nullptr && stream()->in->readable().empty() && !stream()->in->is_at_end() &&
           !deadline.expired()) {
      co_await changed.wait();
    }
    co_await deadline.stop();
  }
  co_await link_->abandon_stream(number, rehearsal_patience);
  link_->close_stream(number);
}

Task<Result<void>> Container::assume(std::string name) {
  const auto guard = co_await changing_.lock();
  if (!is_waiting_ || phase_ != Phase::booting || !machine_->is_on() || !link_ || !link_->is_open())
    co_return failure(ErrorKind::precondition, "it does not wait for a name");
  const Id128 id = record_.id;
  options_.name = std::move(name);
  microvm_->rename(options_.name);
  is_waiting_ = false;
  auto begun = load_record();
  if (begun && record_.id != id)
    begun = failure(ErrorKind::internal, fmt::format("'{}' is another one", options_.name));
  if (begun) begun = begin_run();
  if (begun) begun = co_await machine_->thaw();
  if (begun) begun = co_await go_on_as_clone();
  if (!begun) {
    set_failure(begun.error());
    co_await machine_->end();
    if (phase_ != Phase::off) finish("");
  }
  co_return begun;
}

Task<> Container::discard() {
  is_waiting_ = true;
  if (machine_ && machine_->is_on()) co_await machine_->end();
}

/// Of a keeper that is gone: nobody will ever ask for it. False: it has a name.
Task<Result<bool>> Container::discard_what_waited() {
  const auto text = machine::read_small_file(options_.run.launch_file(options_.name));
  if (!text) co_return false;
  const Json launch = CO_TRY(machine::parse_json(*text));
  if (!launch.is_object() || !launch.value("waiting", Json()).is_object()) co_return false;
  record_ = CO_TRY(decode_container_record(launch["waiting"].dump()));
  memory_id_ = CO_TRY(machine::id_param(launch, "memory")).value_or(Id128{});
  is_waiting_ = true;
  make_machine();
  phase_ = Phase::booting;
  // What stands is left standing.
  const bool is_there =
      CO_TRY(co_await machine_->adopt(memory_id_, launch.value("template", ""), true));
  if (is_there) co_await machine_->end();
  finish("");
  co_return true;
}

}  // namespace berth::container
