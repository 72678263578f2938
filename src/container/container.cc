#include "container/container.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/directories.h"
#include "base/log.h"
#include "base/units.h"
#include "container/guest_clock.h"
#include "container/guest_network.h"
#include "container/hibernation_record.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"

namespace berth::container {
namespace {

using agent::FieldWriter;
using agent::Operation;
using agent::Tag;
using machine::Json;

constexpr Duration boot_patience = std::chrono::seconds(120);  // emulated, on a busy host
constexpr Duration reconnect_patience = std::chrono::seconds(30);
constexpr Duration end_notice = std::chrono::milliseconds(500);
constexpr Duration request_timeout = std::chrono::seconds(20);
constexpr Duration clone_timeout = std::chrono::seconds(60);  // its hooks included
constexpr Duration clone_retry = std::chrono::milliseconds(50);
constexpr Duration hold_max = std::chrono::seconds(30);
constexpr Duration last_words_max = std::chrono::seconds(2);  // of children that keep its output
constexpr Duration last_words_of_killed = std::chrono::milliseconds(100);
constexpr Duration kill_patience = std::chrono::seconds(5);
constexpr Duration power_off_patience = std::chrono::seconds(15);
constexpr std::uint64_t power_off_grace_ms = 2000;  // of what is not the main process
constexpr Duration log_retry = std::chrono::seconds(1);
constexpr std::uint32_t main_number = 1;
constexpr std::size_t entropy_size = 64;
constexpr unsigned killed = 128 + SIGKILL;
constexpr unsigned failed = 255;

std::string hosts_file(const ContainerRecord& container) {
  return fmt::format("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{}\t{}\n",
                     guest_network::address_of(container).value_or("127.0.1.1"),
                     container.specification.hostname);
}

/// Empty where there is none.
Bytes last_of(const agent::Fields& fields, Tag tag) {
  Bytes last;
  for (const agent::Field& field : fields)
    if (field.tag == tag) last = field.value;
  return last;
}

/// 32 digits.
std::string machine_id(const Id128& id) {
  std::string text = id.to_string();
  std::erase(text, '-');
  return text;
}

}  // namespace

Container::Container(UringLoop& loop, ContainerOptions options, Report report)
    : loop_(loop),
      options_(std::move(options)),
      report_(std::move(report)),
      store_(options_.state_dir),
      tasks_(loop),
      changed_(loop),
      changing_(loop),
      idle_(loop.now()) {}

Container::~Container() = default;

void Container::set_phase(Phase phase) {
  phase_ = phase;
  touch();
  changed_.notify_all();
  if (ports_) ports_->wake_up();
}

Result<void> Container::load_record() {
  record_ = TRY(store_.record(options_.name));
  state_ = TRY(store_.state(options_.name));
  return {};
}

void Container::open_ports() {
  ports_ = std::make_unique<PublishedPorts>(
      loop_,
      [this]() -> std::shared_ptr<AgentLink> {
        auto found = link();
        return found && phase_ == Phase::running ? *std::move(found) : nullptr;
      },
      [this] { awaken_soon(); }, [this] { note_answer(); });
}

// --- Starting.

Task<Result<void>> Container::start(Start start) {
  const auto guard = co_await changing_.lock();
  if (phase_ != Phase::off || end_ || closing_) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' runs already", options_.name));
  }
  CO_TRY(load_record());
  CO_TRY(check_start(start.machine));
  make_machine();
  CO_TRY(make_directories(options_.run.container(options_.name)));
  open_ports();
  memory_id_ = SystemRandom().id();
  if (start.wake) co_return co_await go_on_hibernated(std::move(start.machine));
  if (is_hibernated(store_.directory(options_.name))) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' is hibernated: resume it", options_.name));
  }
  image_ = start.machine.image;
  is_clone_ = start.machine.restore.has_value();
  template_memory_ = is_clone_ ? start.machine.restore->memory : std::string();
  CO_TRY(begin_run());
  set_phase(Phase::booting);
  auto started = co_await machine_->start(std::move(start.machine), memory_id_);
  if (started) {
    tasks_.spawn(watch_machine());
    started = co_await connect(boot_patience, is_clone_);
  }
  if (started && is_clone_) {
    started = co_await go_on_as_clone();
    if (started) co_return started;
  }
  if (started) started = co_await prepare_guest();
  if (started && start.hold) {
    set_phase(Phase::held);
    tasks_.spawn(hold_on());
    co_return started;
  }
  if (started) started = co_await start_main();
  if (!started) {
    set_failure(started.error());
    co_await power_off();
    if (phase_ != Phase::off) finish("");  // QEMU never ran
  }
  co_return started;
}

/// Ports, the log, and what whoever comes after us finds.
Result<void> Container::begin_run() {
  forget_pause();  // of a run that ended with its host
  TRY(ports_->open(record_.specification.ports));
  log_begins_at_ = log_time(loop_.wall_time());
  started_at_ = format_time(loop_.wall_time());
  log_.reset();
  log_.emplace(TRY(ContainerLog::open(log_path(), options_.run.cursor(options_.name),
                                      record_.specification.log_bytes, true)));
  TRY(save_launch());
  state_ = {.running = true, .started_at = started_at_};
  return store_.save_state(options_.name, state_);
}

Task<Result<void>> Container::go_on_as_clone() {
  CO_TRY(co_await become_clone(false));
  CO_TRY(co_await find_processes());
  if (!main_)
    co_return failure(ErrorKind::precondition, "the template has no main process any more");
  report_("container_started", "");
  co_return Result<void>{};
}

Task<Result<void>> Container::connect(Duration patience, bool in_step) {
  const Instant deadline = loop_.now() + patience;
  auto stream = std::move(dialled_);
  if (!stream) {
    auto dialled = co_await AgentLink::dial(loop_, machine_->agent_socket());
    if (!dialled)
      co_return failure(std::move(dialled).error().with_context("the guest does not come up"));
    stream = std::move(*dialled);
  }
  auto link = co_await AgentLink::connect(
      loop_, std::move(stream), deadline - loop_.now(),
      {.event = [this](agent::EventKind kind, std::uint32_t channel,
                       const agent::Fields& fields) { on_event(kind, channel, fields); },
       .closed =
           [this] {
             if (!closing_ && link_ && machine_->is_on() && phase_ != Phase::off)
               tasks_.spawn(go_on());
           }},
      in_step);
  if (!link) co_return failure(std::move(link).error().with_context("the guest does not come up"));
  link_ = std::move(*link);
  if (!link_->welcome().boot_error.empty()) {
    co_return failure(ErrorKind::internal,
                      fmt::format("the guest does not come up: {}", link_->welcome().boot_error));
  }
  co_return Result<void>{};
}

void Container::add_identity(FieldWriter& request) const {
  request.text(Tag::hostname, record_.specification.hostname)
      .text(Tag::machine_id, machine_id(record_.id));
  if (microvm_ == nullptr) return;  // the host's kernel has a clock, and its secrets
  std::array<std::byte, entropy_size> entropy{};
  SystemRandom().fill(entropy);
  request.raw(Tag::entropy, entropy).number(Tag::time_ns, time_ns(loop_));
}

void Container::add_network(FieldWriter& request) const {
  request.text(Tag::hosts, hosts_file(record_));
  const auto address = guest_network::address_of(record_);
  if (!address) return;
  request.text(Tag::resolver, fmt::format("nameserver {}\n", guest_network::resolver));
  if (microvm_ == nullptr) return;  // its interface is there already
  request.text(Tag::interface, "eth0")
      .text(Tag::hardware_address, microvm_mac(record_.id))
      .text(Tag::address, guest_network::with_prefix(*address))
      .text(Tag::gateway, guest_network::gateway);
}

Task<Result<void>> Container::prepare_guest() {
  FieldWriter identity(Operation::set_identity);
  add_identity(identity);
  CO_TRY(co_await link_->request(std::move(identity), request_timeout));
  FieldWriter network(Operation::configure);
  add_network(network);
  CO_TRY(co_await link_->request(std::move(network), request_timeout));
  co_return co_await mount_volumes();
}

/// Nothing of the workload has run since the template was saved, and nothing does before this.
/// `may_be_done`: a keeper that is gone may have asked for it.
Task<Result<void>> Container::become_clone(bool may_be_done) {
  const Instant deadline = loop_.now() + clone_timeout;
  while (true) {
    if (may_be_done && !CO_TRY(co_await is_workload_frozen())) break;
    auto asked = co_await ask_to_become_clone();
    if (asked) break;
    // What that keeper has asked for is being done.
    if (asked.error().kind() != ErrorKind::in_use || loop_.now() > deadline) co_return asked;
    may_be_done = true;
    co_await loop_.sleep(clone_retry);
  }
  is_clone_ = false;
  co_return save_launch();
}

Task<Result<bool>> Container::is_workload_frozen() {
  const AgentAnswer answer =
      CO_TRY(co_await link_->request(FieldWriter(Operation::list), request_timeout));
  co_return CO_TRY(answer.fields().number_or(Tag::frozen, 0)) != 0;
}

Task<Result<void>> Container::ask_to_become_clone() {
  FieldWriter request(Operation::become_clone);
  add_identity(request);
  add_network(request);
  const AgentAnswer answer = CO_TRY(co_await link_->ask(std::move(request), clone_timeout));
  if (auto error = agent::read_error(answer.fields())) {
    const std::string_view said = as_text(last_of(answer.fields(), Tag::hook_output));
    if (said.empty()) co_return failure(*std::move(error));
    co_return failure(error->kind(), fmt::format("{}: {}", error->message(), said));
  }
  co_return Result<void>{};
}

Task<Result<void>> Container::mount_volumes() {
  const auto& mounts = record_.specification.mounts;
  for (std::size_t i = 0; i < mounts.size(); ++i) {
    FieldWriter request(Operation::mount);
    request.text(Tag::serial, mount_serial(i)).text(Tag::path, mounts[i].path);
    if (mounts[i].read_only) request.number(Tag::flags, agent::mount_read_only);
    const auto mounted = co_await link_->request(std::move(request), request_timeout);
    // Somebody who is gone may have come so far.
    if (mounted || mounted.error().kind() == ErrorKind::in_use) continue;
    co_return failure(Error(mounted.error())
                          .with_context(fmt::format("cannot mount the volume '{}' at '{}'",
                                                    mounts[i].volume, mounts[i].path)));
  }
  co_return Result<void>{};
}

ProcessSpecification Container::main_specification() const {
  const ContainerSpecification& wanted = record_.specification;
  return {.arguments = wanted.arguments,
          .environment = wanted.environment,
          .working_directory = wanted.working_directory,
          .user = wanted.user,
          .terminal = wanted.terminal,
          .input = wanted.input,
          .is_main = true};
}

Task<Result<void>> Container::start_main() {
  main_ = std::make_shared<GuestProcess>(loop_, link_, main_number, main_specification());
  auto started = co_await main_->start();
  if (!started) {
    if (phase_ != Phase::off)
      set_end({.exit_code = main_->shell_status()}, started.error().message());
    co_return started;
  }
  if (phase_ == Phase::booting || phase_ == Phase::held) {
    set_phase(Phase::running);
    report_("container_started", "");
  }
  tasks_.spawn(watch_main());
  co_return Result<void>{};
}

Task<> Container::hold_on() {
  const Instant until = loop_.now() + hold_max;
  while (phase_ == Phase::held && !closing_) {
    if (loop_.now() >= until) {
      (void)co_await begin(0, 0);
      co_return;
    }
    Deadline deadline(loop_, until - loop_.now(), [this] { changed_.notify_all(); });
    co_await changed_.wait();
    co_await deadline.stop();
  }
}

Task<Result<void>> Container::begin(std::uint16_t rows, std::uint16_t columns) {
  const auto guard = co_await changing_.lock();
  if (phase_ == Phase::held) {
    auto started = co_await start_main();
    if (!started) {
      co_await power_off();
      co_return started;
    }
  }
  const bool has_size = rows > 0 && columns > 0 && !is_paused();
  if (has_size && record_.specification.terminal && main_ && phase_ == Phase::running)
    co_return co_await main_->resize(rows, columns);
  co_return Result<void>{};
}

// --- Another keeper's container.

Result<void> Container::save_launch() const {
  const Json json = {{"memory", memory_id_.to_string()},
                     {"started_at", started_at_},
                     {"image", image_},
                     {"template", template_memory_},
                     {"clone", is_clone_},
                     {"ports", encode_ports(ports_->ports())},
                     {"log_begins_at", log_begins_at_},
                     {"saving", is_saving_},
                     {"waiting", is_waiting_ ? encode(record_) : Json()}};
  return machine::write_small_file(options_.run.launch_file(options_.name), json.dump(2) + '\n');
}

Result<std::optional<Id128>> Container::load_launch() {
  auto text = machine::read_small_file(options_.run.launch_file(options_.name));
  if (!text && text.error().kind() == ErrorKind::not_found) return std::nullopt;
  if (!text) return failure(std::move(text).error());
  const Json json = TRY(machine::parse_json(*text));
  started_at_ = TRY(machine::text_param(json, "started_at"));
  // What was chosen at the start stays.
  record_.specification.ports = TRY(decode_ports(json.value("ports", Json::array())));
  log_begins_at_ = TRY(machine::text_param(json, "log_begins_at"));
  is_clone_ = TRY(machine::flag_param(json, "clone"));
  image_ = TRY(machine::text_param(json, "image"));
  template_memory_ = TRY(machine::text_param(json, "template"));
  is_saving_ = TRY(machine::flag_param(json, "saving"));
  return TRY(machine::id_param(json, "memory"));
}

Task<Result<bool>> Container::adopt() {
  if (CO_TRY(co_await discard_what_waited())) co_return true;
  // One that is to wait has no record.
  if (const auto loaded = load_record(); !loaded) {
    if (loaded.error().kind() == ErrorKind::not_found) co_return false;
    co_return failure(loaded.error());
  }
  const auto memory = CO_TRY(load_launch());
  if (!memory) co_return false;
  memory_id_ = *memory;
  make_machine();
  log_.emplace(CO_TRY(ContainerLog::open(log_path(), options_.run.cursor(options_.name),
                                         record_.specification.log_bytes, false)));
  phase_ = Phase::booting;
  if (is_hibernated(store_.directory(options_.name))) {
    co_await end_saved();
    co_return true;
  }
  if (!CO_TRY(co_await machine_->adopt(memory_id_, template_memory_, !is_clone_ && !is_saving_))) {
    finish(machine_->last_words().empty() ? "it ended while nobody looked"
                                          : machine_->last_words());
    co_return true;
  }
  open_ports();
  if (const auto opened = ports_->open(record_.specification.ports); !opened)
    report_("container_port_lost", opened.error().message());
  tasks_.spawn(watch_machine());
  co_await adopt_pause();
  // A guest that stands cannot be asked: it is when it goes on.
  if (machine_->is_frozen()) {
    set_phase(Phase::running);
  } else {
    tasks_.spawn(go_on());
  }
  changed_.notify_all();
  co_return true;
}

/// The link is gone, or there was none, and the guest runs.
Task<> Container::go_on() {
  {
    // Most often it is gone because QEMU is, of which we hear in an instant.
    Deadline deadline(loop_, link_ ? end_notice : Duration::zero(),
                      [this] { changed_.notify_all(); });
    while (is_on() && !deadline.expired() && !closing_) co_await changed_.wait();
    co_await deadline.stop();
  }
  const auto guard = co_await changing_.lock();
  if (main_) main_.reset();
  for (const auto& [number, process] : std::exchange(processes_, {})) process->wake_up();
  if (link_) co_await std::exchange(link_, nullptr)->close();
  if (closing_ || phase_ == Phase::off || !machine_->is_on()) co_return;
  auto found = co_await connect(phase_ == Phase::booting ? boot_patience : reconnect_patience);
  if (found && is_clone_) found = co_await become_clone(true);
  if (found) found = co_await find_processes();
  if (found && !main_) {
    // Whoever is gone had not come to it.
    found = co_await prepare_guest();
    if (found) found = co_await start_main();
  }
  if (found || closing_ || !machine_->is_on()) co_return;
  set_failure(found.error());
  co_await power_off();
}

Task<Result<void>> Container::find_processes() {
  const AgentAnswer answer =
      CO_TRY(co_await link_->request(FieldWriter(Operation::list), request_timeout));
  // Whoever is gone was saving it.
  if (std::exchange(is_saving_, false) && CO_TRY(answer.fields().number_or(Tag::frozen, 0)) != 0) {
    CO_TRY(co_await link_->request(FieldWriter(Operation::thaw), request_timeout));
    CO_TRY(save_launch());
  }
  GuestProcess::Positions positions;
  std::optional<ProcessEnd> end;
  bool is_main_there = false;
  std::uint64_t process = 0;
  std::uint64_t stream = 0;
  std::array<std::uint64_t, 2> kept_from{};
  std::vector<std::uint32_t> others;
  std::vector<std::uint64_t> connections;
  // Each process begins with its number, each of its streams with its own.
  for (const agent::Field& field : answer.fields()) {
    const auto number = agent::number_of(field);
    if (!number) continue;
    if (field.tag == Tag::process) {
      process = *number;
      if (process == main_number) {
        is_main_there = true;
      } else {
        others.push_back(static_cast<std::uint32_t>(process));
      }
    }
    if (field.tag == Tag::connection || field.tag == Tag::transfer) {
      process = 0;
      connections.push_back(*number);
    }
    if (process != main_number) continue;
    const bool is_errors = stream == agent::stream_of(main_number, agent::stream_errors);
    switch (field.tag) {
      case Tag::stream: stream = *number; break;
      case Tag::exit_code:
      case Tag::exit_signal: end = decode_end(field); break;
      case Tag::output_kept_from: kept_from[is_errors ? 1 : 0] = *number; break;
      case Tag::input_received: positions.input = *number; break;
      case Tag::input_limit: positions.input_limit = *number; break;
      default: break;
    }
  }
  for (const std::uint64_t stream_number : connections) {
    // Its other end has died with the keeper that had it.
    FieldWriter close(Operation::close_stream);
    close.number(Tag::stream, stream_number);
    (void)co_await link_->request(std::move(close), request_timeout);
  }
  for (const std::uint32_t number : others) {
    last_process_ = std::max(last_process_, number);
    // Nobody is left who could hear of it.
    auto orphan = std::make_shared<GuestProcess>(loop_, link_, number, ProcessSpecification{});
    processes_.emplace(number, orphan);
    tasks_.spawn(drop(std::move(orphan)));
  }
  if (!is_main_there) co_return Result<void>{};
  for (const LogStream which : {LogStream::output, LogStream::errors}) {
    const std::uint64_t kept = kept_from[which == LogStream::errors ? 1 : 0];
    if (log_->position(which) < kept) log_->skip(which, kept - log_->position(which));
  }
  positions.output = log_->position(LogStream::output);
  positions.errors = log_->position(LogStream::errors);
  main_ = std::make_shared<GuestProcess>(loop_, link_, main_number, main_specification());
  CO_TRY(main_->go_on(positions));
  if (end) main_->set_end(*end);
  link_->wake();
  tasks_.spawn(watch_main());
  if (phase_ == Phase::booting) set_phase(Phase::running);
  ports_->wake_up();
  co_return Result<void>{};
}

// --- While it runs.

void Container::on_event(agent::EventKind kind, std::uint32_t channel,
                         const agent::Fields& fields) {
  if (kind != agent::EventKind::ended) return;
  const auto end = decode_end(fields);
  if (!end) return;
  if (channel == main_number) {
    if (main_) main_->set_end(*end);
  } else if (const auto found = processes_.find(channel); found != processes_.end()) {
    found->second->set_end(*end);
  }
}

/// False: it could not be written, and is still there.
bool Container::drain(agent::IncomingStream* in, LogStream stream) {
  while (in != nullptr && !in->readable().empty()) {
    const std::string_view text = as_text(in->readable());
    if (const auto written = log_->append(stream, text, loop_.wall_time()); !written) {
      if (!std::exchange(log_fails_, true))
        report_("container_log_failed", written.error().message());
      return false;
    }
    log_fails_ = false;
    in->consume(text.size());
    changed_.notify_all();
  }
  return true;
}

void Container::drain_main() {
  (void)(drain(main_->output(), LogStream::output) && drain(main_->errors(), LogStream::errors));
  main_->wake();
}

/// Everything that the main process writes goes to the log; and then the container ends.
Task<> Container::watch_main() {
  const std::shared_ptr<GuestProcess> main = main_;
  std::optional<Instant> silent_at;  // when its children have had time to say the rest
  while (!closing_ && main == main_ && !main->is_lost()) {
    drain_main();
    if (main->is_over()) break;
    if (main->end() && !silent_at)
      silent_at = loop_.now() + (kill_asked_ ? last_words_of_killed : last_words_max);
    if (silent_at && loop_.now() >= *silent_at && !log_fails_) break;
    if (silent_at || log_fails_) {
      Deadline deadline(loop_, log_fails_ ? log_retry : *silent_at - loop_.now(),
                        [&] { main->wake_up(); });
      co_await main->changed();
      co_await deadline.stop();
    } else {
      co_await main->changed();
    }
  }
  if (closing_ || main != main_ || !main->end()) co_return;
  set_end(*main->end(), "");
  const auto guard = co_await changing_.lock();
  if (phase_ != Phase::off) co_await power_off();
}

void Container::set_end(ProcessEnd end, std::string error) {
  if (end_) return;
  end_ = End{.end = end, .error = std::move(error)};
  changed_.notify_all();
}

/// It could not be run, or not any more; unless that is what somebody wanted.
void Container::set_failure(const Error& error) {
  if (kill_asked_) set_end({.exit_code = killed, .signal = SIGKILL}, "");
  set_end({.exit_code = failed}, error.message());
}

Task<Result<std::shared_ptr<GuestProcess>>> Container::execute(ProcessSpecification specification,
                                                               unsigned& shell_status) {
  CO_TRY(co_await awaken());
  const std::shared_ptr<AgentLink> link = CO_TRY(this->link());
  do {
    last_process_ = last_process_ % agent::process_number_max + 1;
  } while (last_process_ == main_number || processes_.contains(last_process_));
  const std::uint32_t number = last_process_;
  auto process = std::make_shared<GuestProcess>(loop_, link, number, std::move(specification));
  processes_.emplace(number, process);
  auto started = co_await process->start();
  if (!started) {
    shell_status = process->shell_status();
    processes_.erase(number);
    co_return failure(std::move(started).error());
  }
  co_return process;
}

void Container::release(std::shared_ptr<GuestProcess> process) {
  if (!closing_) tasks_.spawn(drop(std::move(process)));
}

Task<> Container::drop(std::shared_ptr<GuestProcess> process) {
  for (agent::IncomingStream* in : {process->output(), process->errors()})
    if (in != nullptr) in->stop();
  process->wake();
  for (const int signal : {SIGHUP, SIGKILL}) {
    if (process->end() || process->is_lost()) break;
    if (!co_await process->signal(static_cast<unsigned>(signal))) break;  // it has ended
    Deadline deadline(loop_, kill_patience, [&] { process->wake_up(); });
    while (!process->end() && !process->is_lost() && !deadline.expired() && !closing_)
      co_await process->changed();
    co_await deadline.stop();
  }
  if (!process->is_lost() && !closing_) co_await process->forget();
  processes_.erase(process->number());
  touch();
}

Result<std::shared_ptr<AgentLink>> Container::link() {
  if (phase_ == Phase::running && machine_->is_frozen()) {
    return failure(ErrorKind::precondition,
                   fmt::format("the container '{}' is paused", options_.name));
  }
  if (!link_ || !link_->is_open() || (phase_ != Phase::running && phase_ != Phase::held)) {
    return failure(ErrorKind::precondition,
                   fmt::format("the container '{}' does not run", options_.name));
  }
  return link_;
}

Task<Result<void>> Container::kill(unsigned signal) {
  if (phase_ != Phase::running) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' does not run", options_.name));
  }
  CO_TRY(co_await awaken());
  const std::shared_ptr<GuestProcess> main = main_;
  if (!main) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' does not run", options_.name));
  }
  co_return co_await main->signal(signal);
}

/// Nothing of the workload runs any more, and everything that it has said is in the log.
Task<Result<void>> Container::rest_workload() {
  CO_TRY(co_await link_->request(FieldWriter(Operation::freeze), request_timeout));
  const Instant deadline = loop_.now() + request_timeout;
  while (loop_.now() < deadline) {
    for (agent::IncomingStream* in : {main_->output(), main_->errors()})
      if (in != nullptr) in->renew_credit();
    link_->wake();
    const AgentAnswer answer =
        CO_TRY(co_await link_->request(FieldWriter(Operation::list), request_timeout));
    std::uint64_t kept = 0;
    std::uint64_t produced = 0;
    std::uint64_t process = 0;  // that the next fields are of; 0: they are of a connection
    for (const agent::Field& field : answer.fields()) {
      const std::uint64_t number = agent::number_of(field).value_or(0);
      if (field.tag == Tag::process) process = number;
      if (field.tag == Tag::connection || field.tag == Tag::transfer) process = 0;
      if (process != main_number) continue;
      if (field.tag == Tag::output_kept_from) kept += number;
      if (field.tag == Tag::output_produced) produced += number;
    }
    if (kept == produced) {
      CO_TRY(co_await link_->request(FieldWriter(Operation::sync), request_timeout));
      co_return Result<void>{};
    }
    co_await loop_.sleep(std::chrono::milliseconds(5));
  }
  co_return failure(ErrorKind::timed_out, "its processes have more to say than can be taken");
}

Task<Result<MicroVm::Saved>> Container::become_template() {
  const auto guard = co_await changing_.lock();
  CO_TRY(link());
  MicroVm* const vm = CO_TRY(microvm());
  if (phase_ != Phase::running || !main_ || main_->end()) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' does not run", options_.name));
  }
  if (!processes_.empty() || record_.specification.has_volumes()) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("'{}' has volumes, or processes besides its own: clones would "
                                  "share them",
                                  options_.name));
  }
  auto rested = co_await rest_workload();
  Result<MicroVm::Saved> saved = failure(ErrorKind::internal, "not saved");
  if (rested) {
    rested = co_await bring_memory_back();
  }
  if (rested) {
    is_template_ = true;
    saved = co_await vm->become_template();
    rested = saved ? Result<void>() : failure(saved.error());
  }
  if (rested) co_return saved;
  is_template_ = false;
  if (machine_->is_on()) {
    if (machine_->is_frozen()) (void)co_await machine_->thaw();
    if (link_ && link_->is_open())
      (void)co_await link_->request(FieldWriter(Operation::thaw), request_timeout);
  }
  co_return failure(std::move(rested).error().with_context(
      fmt::format("'{}' cannot become a template", options_.name)));
}

Json Container::info() const {
  static constexpr std::array<const char*, 5> names = {"stopped", "starting", "starting", "running",
                                                       "stopping"};
  const PauseLevel level = pause_level();
  const std::string_view state =
      level == PauseLevel::none ? names[static_cast<std::size_t>(phase_)] : to_string(level);
  Json json = {{"state", state}, {"started_at", started_at_}};
  json["pause"] = level == PauseLevel::none ? Json() : encode(pause_);
  add_idle(json);
  if (!machine_) return json;
  json["memory"] = memory_id_.to_string();
  json["ports"] = encode_ports(ports_ ? ports_->ports() : record_.specification.ports);
  json["port_fds"] = ports_ ? ports_->descriptors() : std::vector<int>();
  if (const pid_t pid = machine_->pid(); pid != 0) json["pid"] = pid;
  if (microvm_ != nullptr) {
    json["accelerator"] = microvm_->accelerator();
    json["qemu"] = microvm_->qemu_version();
    if (const auto took = microvm_->devices_loaded_in()) {
      json["devices_loaded_us"] =
          std::chrono::duration_cast<std::chrono::microseconds>(*took).count();
    }
  }
  json["kernel"] = link_ ? link_->welcome().kernel : std::string();
  if (const auto used = machine_->usage().memory_bytes) json["memory_used"] = *used;
  return json;
}

// --- Ending.

Task<bool> Container::is_off_within(Duration patience) {
  Deadline deadline(loop_, patience, [this] { changed_.notify_all(); });
  while (phase_ != Phase::off && !deadline.expired() && !closing_) co_await changed_.wait();
  co_await deadline.stop();
  co_return phase_ == Phase::off;
}

Task<Result<void>> Container::stop(Duration timeout) {
  if (phase_ == Phase::off) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' does not run", options_.name));
  }
  // Its memory is not brought back for that.
  const bool ends_paused =
      timeout == Duration::zero() && is_paused() && !record_.specification.has_volumes();
  if (!ends_paused) (void)co_await awaken();
  if (phase_ == Phase::running && main_ && timeout > Duration::zero()) {
    const auto number = signal_number(record_.specification.stop_signal);
    if (number && co_await main_->signal(*number) && co_await is_off_within(timeout))
      co_return Result<void>{};
  }
  kill_asked_ = true;
  if (!ends_paused && phase_ == Phase::running && main_) {
    if (co_await main_->signal(SIGKILL) && co_await is_off_within(kill_patience))
      co_return Result<void>{};
  }
  if (phase_ != Phase::off) co_await machine_->end();
  if (co_await is_off_within(kill_patience)) co_return Result<void>{};
  co_return failure(ErrorKind::timed_out,
                    fmt::format("the container '{}' does not end", options_.name));
}

/// The guest ends, which has nothing left to do; by force if it does not. Returns when it has.
Task<> Container::power_off() {
  if (phase_ == Phase::off) co_return;
  set_phase(Phase::ending);
  const bool is_killed = kill_asked_ && !record_.specification.has_volumes();
  if (!is_killed && machine_->is_on() && link_ && link_->is_open()) {
    FieldWriter request(Operation::power_off);
    request.number(Tag::grace_ms, power_off_grace_ms);
    if (co_await link_->request(std::move(request), request_timeout)) {
      Deadline deadline(loop_, power_off_patience, [this] { changed_.notify_all(); });
      while (machine_->is_on() && !deadline.expired() && !closing_) co_await changed_.wait();
      co_await deadline.stop();
    }
  }
  if (!closing_ && machine_->is_on()) co_await machine_->end();
}

Task<> Container::watch_machine() {
  tasks_.spawn(watch_idle());
  const std::string words = co_await machine_->ended();
  if (closing_) co_return;
  finish(words);
}

void Container::finish(const std::string& last_words) {
  if (kill_asked_) set_end({.exit_code = killed, .signal = SIGKILL}, "");
  if (!end_ && main_ && main_->end()) set_end(*main_->end(), "");
  if (is_template_) set_end({}, "");
  set_end({.exit_code = failed}, last_words.empty()
                                     ? "the guest ended by itself"
                                     : fmt::format("the guest ended by itself: {}", last_words));
  kill_asked_ = false;
  state_ = {.running = false,
            .ended = true,
            .started_at = started_at_,
            .finished_at = format_time(loop_.wall_time()),
            .exit_code = end_->end.exit_code,
            .exit_signal = end_->end.signal,
            .error = end_->error};
  // One that waits is nobody's; one that is hibernated has not ended.
  const bool has_ended = !is_waiting_ && !is_hibernated_;
  if (has_ended) {
    if (const auto saved = store_.save_state(options_.name, state_); !saved)
      log_error("{}", saved.error().message());
  }
  ::unlink(options_.run.launch_file(options_.name).c_str());
  ::unlink(options_.run.cursor(options_.name).c_str());
  forget_pause();
  if (ports_) tasks_.spawn(ports_->close());
  if (has_ended) {
    report_("container_ended",
            end_->error.empty() ? fmt::format("exit code {}", end_->end.exit_code) : end_->error);
  }
  set_phase(Phase::off);
}

Task<> Container::close() {
  closing_ = true;
  changed_.notify_all();
  if (main_) main_->wake_up();
  for (const auto& [number, process] : processes_) process->wake_up();
  if (link_) co_await link_->close();
  dialled_.reset();
  if (machine_) co_await machine_->close();
  changed_.notify_all();
  if (ports_) co_await ports_->close();
  co_await tasks_.drained();
  processes_.clear();
  main_.reset();
}

}  // namespace berth::container
