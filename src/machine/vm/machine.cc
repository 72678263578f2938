#include "machine/vm/machine.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/process.h"
#include "base/units.h"
#include "machine/control_messages.h"
#include "machine/host/accelerator.h"
#include "machine/small_file.h"
#include "machine/vm/device_state.h"
#include "machine/vm/hibernation.h"
#include "machine/vm/qemu_files.h"
#include "machine/volume_directory.h"
#include "memory/memory_image.h"
#include "memory/memory_object.h"
#include "memory/preload.h"

namespace berth::machine {
namespace {

constexpr Duration monitor_patience =
    std::chrono::seconds(30);  // QEMU starts; emulated, on a busy host
constexpr Duration reconnect_patience = std::chrono::seconds(10);
constexpr Duration connect_timeout = std::chrono::seconds(2);
constexpr Duration connect_retry = std::chrono::milliseconds(10);
constexpr Duration command_timeout = std::chrono::seconds(10);
constexpr Duration quit_patience = std::chrono::seconds(10);
constexpr Duration io_retry_first = std::chrono::milliseconds(200);
constexpr Duration io_retry_max = std::chrono::seconds(5);
constexpr Duration restart_window = std::chrono::minutes(1);
constexpr std::size_t restarts_in_window_max = 3;
constexpr Duration restart_pause = std::chrono::milliseconds(500);

bool is_root() { return ::geteuid() == 0; }

}  // namespace

Machine::Machine(UringLoop& loop, Options options, Report report)
    : loop_(loop),
      options_(std::move(options)),
      report_(std::move(report)),
      store_(options_.state.state_dir),
      tasks_(loop),
      process_watch_(loop),
      changed_(loop),
      changing_(loop),
      agent_(std::make_unique<GuestAgent>(loop, agent_socket())),
      kvm_(has_kvm()) {}

Machine::~Machine() = default;

std::string Machine::qemu_directory() const {
  return options_.run.machine_qemu_directory(options_.name);
}

std::vector<std::string> Machine::disk_files() const {
  std::vector<std::string> files;
  for (const MachineDisk& disk : record_.disks) {
    if (!disk.read_only && !disk.volume.empty())
      files.push_back(options_.state.volume(disk.volume) + "/data");
  }
  return files;
}

std::vector<std::string> Machine::logs() const {
  return {log_path(), qemu_directory() + "/console.log"};
}
std::string Machine::agent_socket() const { return qemu_directory() + "/agent.sock"; }
/// Machines of the same name may run on one host, in state directories of their own.
std::string Machine::group_name() const {
  return fmt::format("{}-{}", options_.name, record_.id.to_string().substr(0, 8));
}
std::string Machine::log_path() const { return options_.run.machine(options_.name) + "/qemu.log"; }

// --- Starting.

Task<Result<void>> Machine::start(MachineStart start) {
  const auto guard = co_await changing_.lock();
  if (phase_ != Phase::off) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the machine '{}' is running already", options_.name));
  }
  if (start.wake != is_hibernated(directory())) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("the machine '{}' is {}hibernated", options_.name, start.wake ? "not " : ""));
  }
  record_ = CO_TRY(store_.record(options_.name));
  wish_ = CO_TRY(store_.state(options_.name));
  start_ = std::move(start);
  wish_.running = true;
  wish_.suspended = start_.suspended;
  wish_.crashed = false;
  restarts_.clear();
  if (start_.wake) CO_TRY(co_await prepare_wake());
  if (auto launched = co_await launch(); !launched) {
    wish_.running = false;
    if (start_.wake) remember();  // it was to run already
    co_return launched;
  }
  remember();
  co_return Result<void>{};
}

/// All or nothing.
Task<Result<void>> Machine::launch() {
  phase_ = Phase::starting;
  expected_end_.clear();
  guest_shut_down_ = false;
  auto launched = co_await try_launch();
  if (!launched) {
    if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
    if (process_) {
      ++generation_;  // whoever waits for its end is not to take it for a crash
      (void)send_signal(process_->pidfd, SIGKILL);
      while (reap_qemu(process_->pidfd).empty() && !has_ended(process_->pidfd))
        co_await loop_.sleep(connect_retry);
    }
    clean_up();
    phase_ = Phase::off;
    changed_.notify_all();
    co_return failure(std::move(launched).error().with_context(
        fmt::format("cannot start the machine '{}'", options_.name)));
  }
  phase_ = Phase::on;
  started_at_ = format_time(loop_.wall_time());
  changed_.notify_all();
  co_return Result<void>{};
}

Task<Result<void>> Machine::try_launch() {
  CO_TRY(prepare_directory());
  const MachineSpecification& specification = record_.specification;
  const gid_t gid = kvm_ ? kvm_group() : record_.uid;
  memory_id_ = SystemRandom().id();
  CO_TRY(save_launch());  // so that whoever comes after us finds the memory object
  const memory::MemoryOwner owner =
      is_root() ? memory::MemoryOwner{.uid = record_.uid, .gid = gid}
                : memory::MemoryOwner{.uid = ::geteuid(), .gid = ::getegid()};
  memory_file_ = CO_TRY(
      memory::create_memory_object(options_.memory_dir, memory_id_, specification.memory, owner));
  if (start_.restore && !start_.restore->memory.empty()) {
    const auto load = [image = start_.restore->memory, file = memory_file_] {
      return memory::load_memory_image(image, file);
    };
    CO_TRY(co_await offload(loop_, load));
    fault_point("resuming.memory-there");
  }
  QemuPlaces places{.directory = qemu_directory(),
                    .memory_file = memory_file_,
                    .kvm = kvm_,
                    .incoming = start_.restore.has_value(),
                    .machine_id = record_.id};
  CO_TRY(prepare_boot_files(places));

  group_ = ControlGroup::open(group_name());
  CO_TRY(limit(specification.limits));
  QemuLaunch how{.arguments = {},
                 .environment = {"PATH=/usr/bin:/bin", "LC_ALL=C"},
                 .log_path = log_path(),
                 .process_files = group_.process_files(),
                 .gid = gid};
  if (is_root()) how.uid = record_.uid;
  const std::string library = preload_copy(memory_file_);
  if (tracks_memory()) {
    CO_TRY(copy_for_qemu(options_.preload, library, record_.uid, gid));
    for (std::string& variable :
         CO_TRY(memory::preload_environment(library, memory_file_, memory_channel())))
      how.environment.push_back(std::move(variable));
  }
  CO_TRY(check_command(specification, start_.disks, places));
  how.arguments = qemu_command(specification, start_.disks, places);
  process_ = CO_TRY(launch_qemu(how));
  tasks_.spawn(watch_process(++generation_));
  CO_TRY(co_await connect_monitor(monitor_patience));
  if (start_.restore) fault_point("resuming.qemu-there");
  ::unlink(library.c_str());  // it has been loaded
  if (start_.restore) {
    CO_TRY(check_restore(*start_.restore));
    if (!start_.restore->pages.empty()) CO_TRY(co_await map_pages());
    std::string devices = CO_TRY(read_device_state(start_.restore->devices));
    CO_TRY(co_await load_device_state(loop_, *this, std::move(devices)));
    fault_point("resuming.devices-there");
  }
  for (const std::string* copy : {&places.kernel, &places.initrd})
    if (!copy->empty()) ::unlink(copy->c_str());  // QEMU has read them
  if (start_.wake) CO_TRY(co_await run_again());
  if (wish_.suspended) {
    CO_TRY(co_await command("stop", Json::object()));
    note_suspended(start_.wake ? PauseLevel::parked : PauseLevel::frozen);
  } else if (start_.restore) {
    CO_TRY(co_await command("cont", Json::object()));
    if (start_.wake) went_on(true);
  }
  co_return Result<void>{};
}

Result<void> Machine::prepare_directory() {
  const std::string directory = qemu_directory();
  TRY(check_socket_path(directory + "/console.sock"));
  TRY(make_directories(options_.run.machine(options_.name)));
  // Its user has to get through to its own directory; what else is here is not for its eyes.
  ::chmod(options_.run.machines().c_str(), 0711);
  ::chmod(options_.run.machine(options_.name).c_str(), 0711);
  return make_qemu_directory(directory, record_.uid);
}

Result<void> Machine::prepare_boot_files(QemuPlaces& places) {
  if (record_.specification.kernel.image.empty()) return {};
  const std::string boot = options_.state.machine(options_.name) + "/boot";
  places.kernel = qemu_directory() + "/kernel";
  TRY(copy_for_qemu(boot + "/kernel", places.kernel, record_.uid, static_cast<gid_t>(-1)));
  if (record_.specification.kernel.initrd.empty()) return {};
  places.initrd = qemu_directory() + "/initrd";
  return copy_for_qemu(boot + "/initrd", places.initrd, record_.uid, static_cast<gid_t>(-1));
}

Task<Result<void>> Machine::connect_monitor(Duration patience) {
  const Instant deadline = loop_.now() + patience;
  const std::string path = qemu_directory() + "/qmp.sock";
  while (true) {
    if (!process_ || has_ended(process_->pidfd)) {
      const std::string words = last_words(log_path());
      co_return failure(ErrorKind::internal,
                        fmt::format("QEMU ended at once{}{}", words.empty() ? "" : ": ", words));
    }
    auto client = co_await QmpClient::connect(loop_, path, connect_timeout);
    if (client) {
      monitor_ = std::move(*client);
      monitor_->set_handlers(
          [this](const std::string& event, const Json& data) { on_event(event, data); },
          [this] {
            if (!closing_ && phase_ == Phase::on) tasks_.spawn(reconnect_monitor());
          });
      const auto version =
          co_await monitor_->execute("query-version", Json::object(), command_timeout);
      if (version) qemu_version_ = qemu_version_text(*version);
      co_return Result<void>{};
    }
    if (loop_.now() > deadline) {
      co_return failure(ErrorKind::timed_out, fmt::format("QEMU's monitor does not answer: {}",
                                                          client.error().message()));
    }
    co_await loop_.sleep(connect_retry);
  }
}

// --- Ending.

Task<> Machine::watch_process(std::uint64_t generation) {
  if (!co_await process_watch_.ended(process_->pidfd) || generation != generation_) co_return;
  if (phase_ == Phase::on) co_await after_end();  // while it starts, whoever starts it sees to it
}

/// QEMU has ended: as somebody wanted, or not.
Task<> Machine::after_end() {
  std::string how = reap_qemu(process_->pidfd);
  const std::string words = last_words(log_path());
  if (!words.empty()) how += fmt::format("{}{}", how.empty() ? "" : ": ", words);
  if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
  clean_up();
  const bool wanted = !expected_end_.empty();
  if (!wanted) {
    report_("machine_crashed",
            fmt::format("QEMU ended by itself{}{}", how.empty() ? "" : ": ", how));
    if (may_restart()) {
      phase_ = Phase::starting;
      co_await loop_.sleep(restart_pause);
      start_.restore.reset();
      start_.wake = false;
      const auto guard = co_await changing_.lock();
      if (!closing_ && wish_.running) {
        const auto launched = co_await launch();
        if (launched) {
          report_("machine_restarted", "after a crash");
          co_return;
        }
        how = launched.error().message();
      }
    }
  }
  phase_ = Phase::off;
  wish_.running = false;
  wish_.suspended = false;
  wish_.crashed = !wanted;
  wish_.clean = std::exchange(guest_shut_down_, false);
  wish_.last_end = wanted ? expected_end_ : fmt::format("QEMU ended by itself: {}", how);
  wish_.last_end_at = format_time(loop_.wall_time());
  remember();
  report_("machine_stopped", wish_.last_end);
  changed_.notify_all();
}

bool Machine::may_restart() {
  if (record_.specification.on_crash != MachineSpecification::OnCrash::restart || !wish_.running)
    return false;
  const Instant now = loop_.now();
  while (!restarts_.empty() && now - restarts_.front() > restart_window) restarts_.pop_front();
  if (restarts_.size() >= restarts_in_window_max) return false;
  restarts_.push_back(now);
  return true;
}

/// What a QEMU that is gone has left.
void Machine::clean_up() {
  process_.reset();
  if (!memory_file_.empty()) ::unlink(preload_copy(memory_file_).c_str());
  if (const auto removed = memory::remove_memory_object(options_.memory_dir, memory_id_); !removed)
    log_warning("{}", removed.error().message());
  memory_file_.clear();
  forget_pause();
  group_.remove();
  (void)remove_tree(qemu_directory());
  ::unlink((options_.run.machine(options_.name) + "/launch.json").c_str());
}

void Machine::expect_end(std::string reason) {
  if (expected_end_.empty()) expected_end_ = std::move(reason);
  wish_.running = false;
  remember();
}

Task<Result<void>> Machine::stop(Duration timeout) {
  {
    const auto guard = co_await changing_.lock();
    if (phase_ == Phase::off) {
      co_return failure(ErrorKind::precondition,
                        fmt::format("the machine '{}' is not running", options_.name));
    }
  }
  const Instant deadline = loop_.now() + timeout;
  if (timeout > Duration::zero() && phase_ == Phase::on) {
    expect_end("stopped, as asked");
    {
      const auto guard = co_await changing_.lock();
      (void)co_await go_on();  // a guest that stands still does not shut down
    }
    // Both ways: a guest without an agent has ACPI, and one without ACPI may have an agent.
    (void)co_await command("system_powerdown", Json::object());
    if (record_.specification.agent && loop_.now() < deadline)
      (void)co_await agent_->shutdown("powerdown", deadline - loop_.now());
    while (phase_ != Phase::off && loop_.now() < deadline)
      co_await loop_.sleep(
          std::min<Duration>(std::chrono::milliseconds(20), deadline - loop_.now()));
  }
  if (phase_ == Phase::off) co_return Result<void>{};
  expected_end_.clear();  // that it was asked to is not how it ends
  expect_end(timeout > Duration::zero() ? "ended by force: the guest did not shut down in time"
                                        : "ended by force, as asked");
  co_return co_await end_now();
}

Task<Result<void>> Machine::end_now() {
  if (monitor_) (void)co_await monitor_->execute("quit", Json::object(), quit_patience);
  for (const bool kill : {false, true}) {
    const Instant deadline = loop_.now() + quit_patience;
    if (kill && process_) (void)send_signal(process_->pidfd, SIGKILL);
    while (phase_ != Phase::off && loop_.now() < deadline)
      co_await loop_.sleep(std::chrono::milliseconds(5));
    if (phase_ == Phase::off) co_return Result<void>{};
  }
  co_return failure(ErrorKind::timed_out,
                    fmt::format("QEMU (process {}) does not end", process_ ? process_->pid : 0));
}

// --- Going on and standing still.

Task<Result<Json>> Machine::command(std::string name, Json arguments) {
  QmpClient* client = CO_TRY(monitor());
  co_return co_await client->execute(std::move(name), std::move(arguments), command_timeout);
}

Result<QmpClient*> Machine::monitor() {
  if (phase_ == Phase::off) {
    return failure(ErrorKind::precondition,
                   fmt::format("the machine '{}' is not running", options_.name));
  }
  if (!monitor_ || !monitor_->is_open())
    return failure(ErrorKind::disconnected, "QEMU's monitor is not connected");
  return monitor_.get();
}

Task<Result<std::string>> Machine::guest_status() {
  const Json answer = CO_TRY(co_await command("query-status", Json::object()));
  co_return text_param(answer, "status");
}

/// Has it run, whatever level it is at.
Task<Result<void>> Machine::go_on() {
  const std::string status = CO_TRY(co_await guest_status());
  if (status == "running") co_return Result<void>{};
  co_return co_await go_up();
}

void Machine::on_event(const std::string& event, const Json& data) {
  log_debug("QEMU: {}", event);
  if (event == "SHUTDOWN" && data.is_object() && data.value("guest", false)) {
    tasks_.spawn(guest_went_off(data.value("reason", std::string())));
  } else if (event == "GUEST_PANICKED") {
    tasks_.spawn(guest_panicked());
  } else if (event == "STOP") {
    stands_since_ = loop_.now();
  } else if (event == "RESUME") {
    stood_ = loop_.now() - stands_since_;
  } else if (event == "BLOCK_IO_ERROR" && data.is_object()) {
    if (data.value("action", std::string()) != "stop" || std::exchange(retrying_io_, true)) return;
    report_("machine_io_error",
            fmt::format("{}: {}{}", data.value("node-name", std::string()),
                        data.value("reason", std::string()),
                        data.value("nospace", false) ? ": no space is left" : ""));
    tasks_.spawn(retry_io());
  } else if (event == "DEVICE_DELETED" && data.is_object() && data.contains("device")) {
    unplugged_.push_back(data.value("device", std::string()));
  }
}

Task<> Machine::guest_went_off(std::string reason) {
  guest_shut_down_ = reason.empty() || reason == "guest-shutdown";
  expect_end(reason == "guest-shutdown" || reason.empty()
                 ? "the guest shut down"
                 : fmt::format("the guest ended: {}", reason));
  const auto ended = co_await end_now();
  if (!ended) log_warning("{}", ended.error().message());
}

Task<> Machine::guest_panicked() {
  report_("machine_panicked", "the guest's kernel has panicked");
  if (!may_restart()) co_return;  // it stands still, to be looked at
  const auto guard = co_await changing_.lock();
  if (!co_await command("system_reset", Json::object())) co_return;
  if (co_await command("cont", Json::object())) report_("machine_restarted", "after a panic");
}

/// A disk has failed and the machine stands still: it goes on when the disk does.
Task<> Machine::retry_io() {
  for (Duration pause = io_retry_first; !closing_ && phase_ == Phase::on;
       pause = std::min<Duration>(pause * 2, io_retry_max)) {
    co_await loop_.sleep(pause);
    const auto guard = co_await changing_.lock();
    if (wish_.suspended) break;
    const auto status = co_await guest_status();
    if (!status) continue;
    if (*status != "io-error") break;
    retrying_io_ = false;  // a request that fails again is another event
    (void)co_await command("cont", Json::object());
    if (retrying_io_) co_return;
    retrying_io_ = true;
  }
  retrying_io_ = false;
}

Task<> Machine::reconnect_monitor() {
  while (!closing_ && phase_ == Phase::on && process_ && !has_ended(process_->pidfd)) {
    if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
    if (co_await connect_monitor(reconnect_patience)) co_return;
  }
}

// --- Another keeper's machine.

Task<Result<bool>> Machine::adopt() {
  record_ = CO_TRY(store_.record(options_.name));
  wish_ = CO_TRY(store_.state(options_.name));
  const bool was_launched = CO_TRY(load_launch());
  process_ = find_qemu(qemu_directory() + '/');
  group_ = ControlGroup::open(group_name());
  if (is_hibernated(directory()) && (process_ || was_launched)) {
    co_await end_saved();
    co_return true;
  }
  if (!process_) {
    if (was_launched) {
      // It ended while nobody looked.
      phase_ = Phase::on;
      process_ = QemuProcess{};
      if (!wish_.running) expected_end_ = "stopped, as asked";
      co_await after_end();
    } else {
      group_.remove();
    }
    co_return was_launched;
  }
  phase_ = Phase::on;
  tasks_.spawn(watch_process(++generation_));
  // Whoever is gone may have been saving its memory: then it is slow, and there is the socket that
  // its devices were to come from.
  ::unlink(device_state_socket(qemu_directory()).c_str());
  if (const auto limited = limit(record_.specification.limits); !limited)
    log_warning("{}", limited.error().message());
  CO_TRY(co_await connect_monitor(reconnect_patience));
  const std::string status = CO_TRY(co_await guest_status());
  log_info("found QEMU, process {}: {}", process_->pid, status);
  if (status == "running") wish_.suspended = false;
  co_await adopt_pause();
  if (status == "inmigrate") {
    // Its memory was being filled by somebody who is gone.
    expect_end("ended: what it was to go on from was not complete");
    CO_TRY(co_await end_now());
  } else if (status == "shutdown" || !wish_.running) {
    // Or somebody had asked for its end, and went before it came.
    tasks_.spawn(guest_went_off(status == "shutdown" ? "" : "it was to end"));
  } else if (status == "guest-panicked") {
    tasks_.spawn(guest_panicked());
  } else if (status == "io-error") {
    retrying_io_ = true;
    tasks_.spawn(retry_io());
  } else if (status != "running" && !wish_.suspended) {
    CO_TRY(co_await command("cont", Json::object()));
    report_("machine_resumed", "it had been stopped by a keeper that is gone");
  }
  changed_.notify_all();
  co_return true;
}

Task<> Machine::close() {
  closing_ = true;
  process_watch_.cancel();
  co_await agent_->close();
  if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
  changed_.notify_all();  // nothing will change any more
  co_await tasks_.drained();
}

Result<void> Machine::save_launch() const {
  Json disks = Json::array();
  for (const AttachedDisk& disk : start_.disks) disks.push_back(encode(disk));
  const MachineSpecification& specification = record_.specification;
  const Json json = {{"memory", memory_id_.to_string()},
                     {"memory_size", specification.memory},
                     {"cpus", specification.cpus},
                     {"disks", std::move(disks)}};
  return write_small_file(options_.run.machine(options_.name) + "/launch.json", format_json(json));
}

Result<bool> Machine::load_launch() {
  auto text = read_small_file(options_.run.machine(options_.name) + "/launch.json");
  if (!text && text.error().kind() == ErrorKind::not_found) return false;
  if (!text) return failure(std::move(text).error());
  const Json json = TRY(parse_json(*text));
  const std::string memory_id = TRY(required_text_param(json, "memory"));
  memory_id_ = TRY(Id128::parse(memory_id));
  memory_file_ = memory::memory_object_path(options_.memory_dir, memory_id_);
  // Of a QEMU that runs, whatever it is to have from its next start on.
  MachineSpecification& specification = record_.specification;
  specification.memory = TRY(number_param(json, "memory_size")).value_or(specification.memory);
  const auto cpus = TRY(number_param(json, "cpus"));
  if (cpus) specification.cpus = static_cast<unsigned>(*cpus);
  start_.disks.clear();
  for (const Json& disk : json.value("disks", Json::array()))
    start_.disks.push_back(TRY(decode_attached_disk(disk)));
  return true;
}

void Machine::remember() {
  if (const auto saved = store_.save_state(options_.name, wish_); !saved)
    log_warning("{}", saved.error().message());
}

}  // namespace berth::machine
