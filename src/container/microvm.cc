#include "container/microvm.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "async/directories.h"
#include "base/log.h"
#include "base/process.h"
#include "container/host_tsc.h"
#include "machine/host/accelerator.h"
#include "machine/layout.h"
#include "machine/vm/device_state.h"
#include "machine/vm/qemu_files.h"
#include "machine/volume_directory.h"
#include "memory/memory_object.h"
#include "memory/parking.h"
#include "memory/preload.h"

namespace berth::container {
namespace {

using machine::Json;

constexpr Duration monitor_patience = std::chrono::seconds(30);  // QEMU starts, on a busy host
constexpr Duration reconnect_patience = std::chrono::seconds(10);
constexpr Duration connect_timeout = std::chrono::seconds(2);
constexpr Duration connect_retry = std::chrono::milliseconds(5);
constexpr Duration command_timeout = std::chrono::seconds(10);
constexpr Duration last_words_patience = std::chrono::seconds(2);
constexpr Duration group_patience = std::chrono::seconds(5);
constexpr Duration io_retry_first = std::chrono::milliseconds(200);
constexpr Duration io_retry_max = std::chrono::seconds(5);

bool is_root() { return ::geteuid() == 0; }

}  // namespace

MicroVm::MicroVm(UringLoop& loop, Options options, Report report)
    : loop_(loop),
      options_(std::move(options)),
      report_(std::move(report)),
      kvm_(machine::has_kvm()),
      tasks_(loop),
      process_watch_(loop),
      changed_(loop) {}

MicroVm::~MicroVm() = default;

std::string MicroVm::agent_socket() const {
  return fmt::format("{}/{}", qemu_directory(), machine::agent_socket_name);
}

std::string MicroVm::memory_channel() const {
  return fmt::format("{}/memory.sock", qemu_directory());
}

memory::GuestProcess MicroVm::memory_process() const {
  return {.pid = pid(), .memory_file = memory_file_, .channel = memory_channel()};
}

std::vector<std::string> MicroVm::logs() const {
  return {options_.run.qemu_log(options_.name),
          fmt::format("{}/{}", qemu_directory(), machine::console_log_name)};
}

std::string MicroVm::group_name() const { return container_control_group(options_.id, memory_id_); }

// --- Starting.

Task<Result<void>> MicroVm::start(Start start, Id128 memory) {
  memory_id_ = memory;
  last_words_.clear();
  auto launched = co_await launch(std::move(start));
  if (!launched) {
    const bool had_process = process_.has_value();
    if (launched.error().kind() == ErrorKind::disconnected) {
      // Most often it has ended by itself, or is about to, and says why.
      Deadline deadline(loop_, last_words_patience, [this] { changed_.notify_all(); });
      while (process_ && !deadline.expired()) co_await changed_.wait();
      co_await deadline.stop();
      if (!process_ && !last_words_.empty())
        launched = failure(ErrorKind::precondition, last_words_);
    }
    if (process_) {
      co_await end();
    } else if (!had_process) {
      co_await clean_up();
    }
    co_return failure(std::move(launched).error().with_context(
        fmt::format("cannot start the microVM of '{}'", options_.name)));
  }
  co_return Result<void>{};
}

Task<Result<void>> MicroVm::launch(Start start) {
  const std::string saved_by = start.restore ? start.restore->accelerator : std::string();
  if (!saved_by.empty() && saved_by != accelerator()) {
    co_return failure(ErrorKind::precondition, fmt::format("it was saved under {}, and runs with "
                                                           "{} on this host",
                                                           saved_by, accelerator()));
  }
  CO_TRY(prepare_directory());
  const gid_t gid = kvm_ ? machine::kvm_group() : options_.uid;
  CO_TRY(prepare_memory(start, gid));
  const Fd image(::open(start.image.c_str(), O_RDONLY | O_CLOEXEC));
  if (!image)
    co_return errno_failure(errno, fmt::format("cannot open the image '{}'", start.image));
  MicroVmSpecification specification{.name = options_.name,
                                     .id = options_.id,
                                     .cpus = options_.cpus,
                                     .memory = options_.memory,
                                     .network = options_.network,
                                     .overlay = {},
                                     .disks = std::move(start.disks)};
  if (options_.has_overlay && !specification.disks.empty())
    specification.overlay = specification.disks.front().node;
  MicroVmPlaces places{.directory = qemu_directory(),
                       .memory_file = memory_file_,
                       .kernel = {},
                       .initrd = {},
                       .image_fd = image.get(),
                       .kvm = kvm_,
                       .incoming = start.restore.has_value()};
  Fd kernel;
  if (!start.restore) {
    // An emulated CPU takes long to unpack it; a kernel that does so itself is where it chooses.
    if (!kvm_ && !start.unpacked_kernel.empty()) {
      kernel = Fd(::open(start.unpacked_kernel.c_str(), O_RDONLY | O_CLOEXEC));
      if (!kernel)
        co_return errno_failure(errno, fmt::format("cannot open '{}'", start.unpacked_kernel));
      places.kernel = fmt::format("/proc/self/fd/{}", kernel.get());
    } else {
      places.kernel = kernel_copy();
      CO_TRY(machine::copy_for_qemu(start.kernel, places.kernel, options_.uid, gid));
    }
    places.initrd = initrd_copy();
    CO_TRY(machine::copy_for_qemu(start.initrd, places.initrd, options_.uid, gid));
    if (!kvm_) places.tsc_khz = co_await offload(loop_, [] { return measure_host_tsc_khz(); });
  }

  group_ = machine::ControlGroup::open(group_name());
  if (options_.cpu_limit > 0) CO_TRY(group_.limit_cpus(options_.cpu_limit));
  machine::QemuLaunch how{.arguments = microvm_command(specification, places),
                          .environment = {"PATH=/usr/bin:/bin", "LC_ALL=C"},
                          .log_path = options_.run.qemu_log(options_.name),
                          .process_files = group_.process_files(),
                          .inherited = {image.get()},
                          .uid = std::nullopt,
                          .gid = gid};
  if (kernel) how.inherited.push_back(kernel.get());
  if (is_root()) how.uid = options_.uid;
  for (std::string& variable : CO_TRY(preload_environment(start, gid)))
    how.environment.push_back(std::move(variable));
  process_ = CO_TRY(machine::launch_qemu(how));
  tasks_.spawn(watch_process());
  CO_TRY(co_await connect_monitor(monitor_patience));
  // QEMU has read them.
  for (const std::string& copy : {preload_path(), kernel_copy(), initrd_copy()})
    ::unlink(copy.c_str());
  if (start.restore) co_return co_await go_on_from(*std::move(start.restore));
  co_return Result<void>{};
}

Task<Result<void>> MicroVm::go_on_from(Restore saved) {
  if (!saved.qemu.empty() && saved.qemu != qemu_version_) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format("it was saved by QEMU {}, and this host has {}", saved.qemu, qemu_version_));
  }
  if (!saved.pages.empty()) {
    CO_TRY(co_await offload(loop_, [process = memory_process(), &saved]() -> Result<void> {
      const auto memory = TRY(memory::GuestMemory::open(process));
      return memory::map_saved(*memory, saved.pages);
    }));
  }
  std::string devices = CO_TRY(machine::read_device_state(saved.devices));
  // Nobody but QEMU itself is on its network, and the guest would be busy with saying who it is.
  CO_TRY(co_await command("migrate-set-parameters", {{"announce-rounds", 0}}));
  const Instant began = loop_.now();
  CO_TRY(co_await machine::load_device_state(loop_, *this, std::move(devices)));
  devices_loaded_in_ = loop_.now() - began;
  frozen_ = saved.stands;
  if (!frozen_) CO_TRY(co_await command("cont", Json::object()));
  co_return Result<void>{};
}

/// A clone has none of its own: what it writes is private to its QEMU.
Result<void> MicroVm::prepare_memory(const Start& start, gid_t gid) {
  is_clone_ = start.restore && !start.restore->memory.empty();
  if (is_clone_) {
    memory_file_ = start.restore->memory;
    const std::string own = memory::memory_object_path(options_.memory_dir, memory_id_);
    const std::string directory = own.substr(0, own.rfind('/'));
    if (::mkdir(directory.c_str(), 0711) != 0 || ::chmod(directory.c_str(), 0711) != 0)
      return errno_failure(errno, fmt::format("cannot make '{}'", directory));
    return {};
  }
  const memory::MemoryOwner owner =
      is_root() ? memory::MemoryOwner{.uid = options_.uid, .gid = gid}
                : memory::MemoryOwner{.uid = ::geteuid(), .gid = ::getegid()};
  memory_file_ =
      TRY(memory::create_memory_object(options_.memory_dir, memory_id_, options_.memory, owner));
  return {};
}

Result<std::vector<std::string>> MicroVm::preload_environment(const Start& start, gid_t gid) const {
  if (options_.preload.empty()) {
    if (!is_clone_) return std::vector<std::string>();
    return failure(ErrorKind::unsupported, "clones need the library that is loaded into QEMU");
  }
  TRY(machine::copy_for_qemu(options_.preload, preload_path(), options_.uid, gid));
  return is_clone_
             ? memory::clone_environment(preload_path(), start.restore->memory, memory_channel())
             : memory::preload_environment(preload_path(), memory_file_, memory_channel());
}

std::string MicroVm::kernel_copy() const { return qemu_directory() + "/kernel"; }
std::string MicroVm::initrd_copy() const { return qemu_directory() + "/initrd"; }

/// In the memory directory, since programs may not be run from /run.
std::string MicroVm::preload_path() const {
  return machine::preload_copy(memory::memory_object_path(options_.memory_dir, memory_id_));
}

Result<void> MicroVm::prepare_directory() {
  TRY(machine::check_socket_path(memory_channel()));  // the longest
  TRY(make_directories(options_.run.microvms()));
  // Each QEMU's user has to get through to its own directory.
  ::chmod(options_.run.microvms().c_str(), 0711);
  return machine::make_qemu_directory(qemu_directory(), options_.uid);
}

Task<Result<void>> MicroVm::connect_monitor(Duration patience) {
  const Instant deadline = loop_.now() + patience;
  const std::string path = fmt::format("{}/{}", qemu_directory(), machine::qmp_socket_name);
  while (true) {
    if (!process_ || has_ended(process_->pidfd)) {
      const std::string words = machine::last_words(options_.run.qemu_log(options_.name));
      co_return failure(ErrorKind::internal,
                        fmt::format("QEMU ended at once{}{}", words.empty() ? "" : ": ", words));
    }
    auto client = co_await machine::QmpClient::connect(loop_, path, connect_timeout);
    if (client) {
      monitor_ = std::move(*client);
      monitor_->set_handlers(
          [this](const std::string& event, const Json& data) { on_event(event, data); },
          [this] {
            if (!closing_ && process_) tasks_.spawn(reconnect_monitor());
          });
      const auto version =
          co_await monitor_->execute("query-version", Json::object(), command_timeout);
      if (version) qemu_version_ = machine::qemu_version_text(*version);
      co_return Result<void>{};
    }
    if (loop_.now() > deadline) {
      co_return failure(ErrorKind::timed_out, fmt::format("QEMU's monitor does not answer: {}",
                                                          client.error().message()));
    }
    co_await loop_.sleep(connect_retry);
  }
}

Task<> MicroVm::reconnect_monitor() {
  while (!closing_ && process_ && !has_ended(process_->pidfd)) {
    if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
    if (co_await connect_monitor(reconnect_patience)) co_return;
  }
}

Task<Result<bool>> MicroVm::adopt(Id128 memory, std::string template_memory, bool may_stand) {
  memory_id_ = memory;
  is_clone_ = !template_memory.empty();
  memory_file_ = is_clone_ ? std::move(template_memory)
                           : memory::memory_object_path(options_.memory_dir, memory);
  group_ = machine::ControlGroup::open(group_name());
  process_ = machine::find_qemu(qemu_directory() + '/');
  if (!process_) {
    last_words_ = machine::last_words(options_.run.qemu_log(options_.name));
    co_await clean_up();
    co_return false;
  }
  tasks_.spawn(watch_process());
  auto status = Result<Json>(failure(ErrorKind::disconnected, "QEMU's monitor is not connected"));
  if (const auto connected = co_await connect_monitor(reconnect_patience); !connected) {
    status = failure(connected.error());
  } else {
    status = co_await command("query-status", Json::object());
  }
  if (!status && (!process_ || has_ended(process_->pidfd))) {
    // It was on its way out when it was found.
    (void)co_await ended();
    co_return false;
  }
  const std::string text = CO_TRY(std::move(status)).value("status", std::string());
  log_info("found QEMU, process {}: {}", process_->pid, text);
  if (text == "inmigrate") {
    co_await end();
    last_words_ = "what it was to go on from was not complete";
    co_return false;
  }
  // The latter two where a keeper died that was saving the state of its devices.
  frozen_ = text == "paused" || text == "postmigrate" || text == "finish-migrate";
  if (frozen_ && !may_stand) {
    // QEMU does not go on before it has noticed that nobody takes that state.
    const Instant deadline = loop_.now() + reconnect_patience;
    auto thawed = co_await thaw();
    while (!thawed && process_ && loop_.now() < deadline) {
      co_await loop_.sleep(connect_retry);
      thawed = co_await thaw();
    }
    CO_TRY(std::move(thawed));
  }
  if (text == "io-error") {
    retrying_io_ = true;
    tasks_.spawn(retry_io());
  }
  co_return true;
}

// --- While it runs.

Task<Result<Json>> MicroVm::command(std::string name, Json arguments) {
  if (!monitor_) co_return failure(ErrorKind::disconnected, "QEMU's monitor is not connected");
  co_return co_await monitor_->execute(std::move(name), std::move(arguments), command_timeout);
}

void MicroVm::on_event(const std::string& event, const Json& data) {
  if (event == "BLOCK_IO_ERROR" && data.is_object()) {
    if (data.value("action", std::string()) != "stop" || std::exchange(retrying_io_, true)) return;
    report_("container_io_error", fmt::format("{}: {}", data.value("node-name", std::string()),
                                              data.value("reason", std::string())));
    tasks_.spawn(retry_io());
  }
}

/// A disk has failed and the guest stands still: it goes on when the disk does.
Task<> MicroVm::retry_io() {
  for (Duration pause = io_retry_first; !closing_ && process_;
       pause = std::min<Duration>(pause * 2, io_retry_max)) {
    co_await loop_.sleep(pause);
    if (frozen_) break;
    const auto status = co_await command("query-status", Json::object());
    if (!status) continue;
    if (status->value("status", std::string()) != "io-error") break;
    retrying_io_ = false;  // a request that fails again is another event
    (void)co_await command("cont", Json::object());
    if (retrying_io_) co_return;
    retrying_io_ = true;
  }
  retrying_io_ = false;
}

Result<void> MicroVm::slow(unsigned percent) {
  const double whole = options_.cpu_limit > 0 ? options_.cpu_limit : double(options_.cpus);
  return group_.limit_cpus(percent >= 100 ? options_.cpu_limit : whole * percent / 100);
}

Task<Result<void>> MicroVm::freeze() {
  CO_TRY(co_await command("stop", Json::object()));
  frozen_ = true;
  co_return Result<void>{};
}

Task<Result<void>> MicroVm::thaw() {
  CO_TRY(co_await command("cont", Json::object()));
  frozen_ = false;
  co_return Result<void>{};
}

Task<Result<std::string>> MicroVm::save_devices() {
  return machine::take_device_state(loop_, *this);
}

Task<Result<MicroVm::Saved>> MicroVm::become_template() {
  if (is_clone_) co_return failure(ErrorKind::unsupported, "a clone cannot become a template");
  Saved saved{.memory = memory_file_, .devices = {}};
  CO_TRY(co_await freeze());
  saved.devices = CO_TRY(co_await save_devices());
  keeps_memory_ = true;
  co_await end();
  CO_TRY(memory::seal_memory_object(saved.memory));
  co_return saved;
}

// --- Ending.

Task<> MicroVm::watch_process() {
  if (!co_await process_watch_.ended(process_->pidfd)) co_return;
  last_words_ = machine::reap_qemu(process_->pidfd);
  if (last_words_ == "exit code 0") last_words_.clear();
  const std::string words = machine::last_words(options_.run.qemu_log(options_.name));
  if (!words.empty()) last_words_ += fmt::format("{}{}", last_words_.empty() ? "" : ": ", words);
  if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
  co_await clean_up();
  process_.reset();
  changed_.notify_all();
}

Task<> MicroVm::end() {
  if (process_) (void)send_signal(process_->pidfd, SIGKILL);
  (void)co_await ended();
}

Task<std::string> MicroVm::ended() {
  while (process_ && !closing_) co_await changed_.wait();
  co_return last_words_;
}

/// What a QEMU that is gone has left.
Task<> MicroVm::clean_up() {
  ::unlink(preload_path().c_str());
  if (!keeps_memory_) {
    const auto removed = memory::remove_memory_object(options_.memory_dir, memory_id_);
    if (!removed) log_warning("{}", removed.error().message());
  }
  memory_file_.clear();
  // A process that was killed takes a moment to leave it.
  const Instant deadline = loop_.now() + group_patience;
  while (!group_.remove() && loop_.now() < deadline) co_await loop_.sleep(connect_retry);
  (void)machine::remove_tree(qemu_directory());
  co_return;
}

Task<> MicroVm::close() {
  closing_ = true;
  process_watch_.cancel();
  if (monitor_) co_await std::exchange(monitor_, nullptr)->close();
  changed_.notify_all();  // nothing will change any more
  co_await tasks_.drained();
}

}  // namespace berth::container
