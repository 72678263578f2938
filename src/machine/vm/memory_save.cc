#include "machine/vm/memory_save.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "base/fault_point.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/units.h"
#include "machine/host/available_memory.h"
#include "machine/small_file.h"
#include "memory/round_policy.h"

namespace berth::machine {
namespace {

constexpr Duration report_interval = std::chrono::milliseconds(50);
// What of the staging earlier rounds leave to the last.
constexpr std::uint64_t room_for_last = memory::RoundLimits{}.staging_max;
constexpr std::uint64_t ready_step = 16 * MiB;
constexpr std::uint64_t staging_usual = 256 * MiB;
// For disks that are busy: a second, in rounds that stay small.
constexpr Duration wait_for_disks = std::chrono::milliseconds(20);
constexpr int waits_max = 50;

/// Half of a memory may be what is written again and again; no more than a quarter of what the host
/// has left is taken for it. It is touched as far as it is needed.
std::uint64_t staging_for(std::uint64_t memory_size) {
  const std::uint64_t wanted = std::max(memory_size / 2, staging_usual);
  return std::max(std::min(wanted, available_memory() / 4) / MiB * MiB, room_for_last);
}

std::unexpected<Error> too_fast(const memory::RoundDecision& decision, unsigned rounds) {
  const std::string slowed = decision.percent == 100
                                 ? std::string()
                                 : fmt::format(", though it was slowed to {} %", decision.percent);
  return failure(ErrorKind::limit,
                 fmt::format("the guest writes its memory faster than it can be saved: {} after {} "
                             "rounds{}; suspend it, or try again later",
                             format_size(decision.last_round_bytes), rounds, slowed));
}

}  // namespace

/// QEMU flushes a machine's disks when it stops: what there is to flush is flushed while it runs.
/// What fails here fails there too.
class MemorySave::DiskSyncing {
 public:
  DiskSyncing(UringLoop& loop, std::vector<std::string> files)
      : loop_(loop), files_(std::move(files)), gate_(loop) {}

  /// Once more, if it has ended; nobody waits.
  void go_on() {
    if (gate_.size() == 0) gate_.spawn(run());
  }
  /// Whether a flush would find little to do.
  bool is_quick() const { return last_ && *last_ <= quick; }
  /// Waits for what is under way.
  Task<> end() { return gate_.drained(); }

 private:
  static constexpr Duration quick = std::chrono::milliseconds(20);

  Task<> run() {
    const Instant started = loop_.now();
    co_await offload(loop_, [this] { sync(); });
    last_ = loop_.now() - started;
  }
  void sync() const {
    for (const std::string& path : files_) {
      const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (file) (void)::fdatasync(file.get());
    }
  }

  UringLoop& loop_;
  const std::vector<std::string> files_;
  Gate gate_;
  std::optional<Duration> last_;
};

MemorySave::MemorySave(UringLoop& loop, SavedGuest& machine)
    : loop_(loop), machine_(machine), begun_(loop), taking_(loop), ending_(loop) {}

MemorySave::~MemorySave() = default;

Task<Result<void>> MemorySave::begin(std::string directory, Report report, Check check) {
  if (beginning_ || is_active())
    co_return failure(ErrorKind::precondition, "the machine's memory is being saved already");
  CO_TRY(machine_.check_runs());
  if (!machine_.tracks_memory()) {
    co_return failure(ErrorKind::unsupported,
                      "this host cannot track what a guest writes: see `berth host doctor`");
  }
  beginning_ = true;
  directory_ = std::move(directory);
  hold_.emplace(co_await machine_.hold());
  auto stands = co_await copy_and_stop(report, check);
  beginning_ = false;
  if (stands) {
    taking_.spawn(take());
  } else {
    const auto going_on = co_await go_on();
    if (!going_on) log_warning("{}", going_on.error().message());
    forget();
  }
  begun_.notify_all();
  co_return stands;
}

Task<Result<void>> MemorySave::copy_and_stop(const Report& report, const Check& check) {
  figures_ = {};
  left_out_.clear();
  stop_copying_ = false;
  copied_ = 0;
  CO_TRY(machine_.check_runs());
  CO_TRY(co_await machine_.bring_memory_back());
  scan_ = CO_TRY(co_await offload(loop_, [pid = machine_.pid(), file = machine_.memory_file()] {
    return memory::DirtyScan::attach(pid, file);
  }));
  fault_point("memory.tracked");
  writer_ =
      CO_TRY(memory::MemoryImageWriter::create(machine_.memory_file(), directory_ + "/memory"));
  devices_ = CO_TRY(co_await DeviceStateReceiver::prepare(loop_, machine_));
  fault_point("memory.prepared");
  CO_TRY(co_await copy_everything(report, check));
  fault_point("memory.copied");
  if (!machine_.is_suspended()) {
    DiskSyncing disks(loop_, machine_.disk_files());
    auto copied = co_await copy_rounds(report, check, disks);
    co_await disks.end();
    CO_TRY(std::move(copied));
  }
  co_return co_await stop();
}

Task<Result<void>> MemorySave::copy_everything(const Report& report, const Check& check) {
  last_take_ = loop_.now();
  CO_TRY(co_await offload(loop_, [this]() -> Result<void> {
    TRY(scan_->take());
    return writer_->prepare_staging(staging_for(machine_.memory_size()));
  }));
  looked_at_ = found_written_ = readied_ = 0;
  dirty_share_ = 0;
  Gate telling(loop_);
  Event ended(loop_);
  bool copying = true;
  const auto tell = [](MemorySave& self, const Report& to, const Check& wanted, Event& changed,
                       bool& busy) -> Task<> {
    while (busy) {
      to(self.copied_, self.machine_.memory_size());
      if (!wanted()) self.stop_copying_ = true;
      co_await self.ready_staging(busy);
      if (!busy) break;
      Deadline tick(self.loop_, report_interval, [&changed] { changed.notify_all(); });
      co_await changed.wait();
      co_await tick.stop();
    }
  };
  telling.spawn(tell(*this, report, check, ended, copying));
  auto copied = co_await offload(loop_, [this]() -> Result<void> {
    left_out_ = TRY(writer_->copy_all(
        stop_copying_, [this](std::uint64_t done) { copied_ = done; },
        [this](memory::PageRange range) { return leave_out(range); }));
    return writer_->sync();
  });
  copying = false;
  ended.notify_all();
  co_await telling.drained();
  ++figures_.rounds;
  co_return copied;
}

/// What has been written again need not be copied now; how much that is tells how much the next
/// round will be.
Result<std::vector<memory::PageRange>> MemorySave::leave_out(memory::PageRange range) {
  auto written = TRY(scan_->written_of(range));
  looked_at_ += range.length;
  found_written_ += memory::total_length(written);
  dirty_share_ = static_cast<double>(found_written_) / static_cast<double>(looked_at_);
  return written;
}

/// Memory takes its time to be found, on a host that is a virtual machine above all: that of the
/// next rounds is looked for while the disk is busy, and no longer. What is written of the whole
/// memory until its end comes to about twice the share that has been seen of each part when its
/// turn came.
Task<> MemorySave::ready_staging(const bool& wanted) {
  const auto expected = [this] {
    const double bytes = 2 * dirty_share_ * static_cast<double>(machine_.memory_size());
    return static_cast<std::uint64_t>(bytes) + room_for_last / 2;
  };
  while (wanted && readied_ < expected()) {
    readied_ += ready_step;
    const auto touched =
        co_await offload(loop_, [this] { return writer_->touch_staging(readied_); });
    if (touched) continue;
    log_warning("{}", touched.error().message());
    readied_ = std::numeric_limits<std::uint64_t>::max();  // no further attempt
  }
}

Task<Result<void>> MemorySave::copy_rounds(const Report& report, const Check& check,
                                           DiskSyncing& disks) {
  memory::RoundPolicy policy({});
  int waits = 0;
  while (true) {
    CO_TRY(check());
    disks.go_on();
    const Instant now = loop_.now();
    const auto dirty = CO_TRY(co_await take_dirty());
    CO_TRY(co_await copy_round(dirty));
    ++figures_.rounds;
    fault_point("memory.round");
    report(machine_.memory_size(), machine_.memory_size());
    const auto decision = policy.next({.bytes_dirty = memory::total_length(dirty),
                                       .since_last_take = now - last_take_,
                                       .copying = loop_.now() - now});
    last_take_ = now;
    log_debug("round {}: {} bytes; the next would be {} bytes", figures_.rounds,
              memory::total_length(dirty), decision.last_round_bytes);
    if (decision.step == memory::RoundDecision::Step::stop_now) {
      if (!decision.within_goal && decision.last_round_bytes > writer_->staging_left())
        co_return too_fast(decision, figures_.rounds);
      if (disks.is_quick() || ++waits > waits_max) break;
      co_await loop_.sleep(wait_for_disks);
    }
    if (decision.step == memory::RoundDecision::Step::slow_down) {
      slowed_ = true;
      if (const auto slowed = machine_.slow(decision.percent); !slowed)
        log_warning("the machine cannot be slowed: {}", slowed.error().message());
    }
  }
  co_return Result<void>{};
}

/// What has to be copied since the last look.
Task<Result<std::vector<memory::PageRange>>> MemorySave::take_dirty() {
  co_return co_await offload(loop_, [this]() -> Result<std::vector<memory::PageRange>> {
    auto dirty = TRY(scan_->take());
    if (left_out_.empty()) return dirty;
    dirty.insert(dirty.end(), left_out_.begin(), left_out_.end());
    left_out_.clear();
    return memory::merged(std::move(dirty));
  });
}

Task<Result<void>> MemorySave::copy_round(const std::vector<memory::PageRange>& dirty) {
  co_return co_await offload(loop_, [this, &dirty]() -> Result<void> {
    TRY(writer_->copy(dirty, room_for_last));
    TRY(writer_->sync());
    return writer_->touch_staging(room_for_last / 2);
  });
}

Task<Result<void>> MemorySave::stop() {
  // QEMU's own threads are slowed too: not while everybody waits for them.
  if (std::exchange(slowed_, false)) (void)machine_.slow(100);
  rested_ = true;
  CO_TRY(co_await machine_.rest());
  const Instant stopping = loop_.now();
  stopped_ = true;
  CO_TRY(co_await machine_.command("stop", Json::object()));
  fault_point("memory.stopped");
  figures_.stopping = loop_.now() - stopping;
  co_return Result<void>{};
}

Task<> MemorySave::take() { taken_ = co_await take_rest(); }

Task<Result<void>> MemorySave::take_rest() {
  const Instant saving = loop_.now();
  device_state_ = CO_TRY(co_await devices_->receive());
  fault_point("memory.devices-taken");
  const Instant scanning = loop_.now();
  const auto dirty = CO_TRY(co_await take_dirty());
  const Instant copying = loop_.now();
  CO_TRY(co_await offload(loop_, [this, &dirty] { return writer_->stage(dirty); }));
  figures_.saving_devices = scanning - saving;
  figures_.scanning = copying - scanning;
  figures_.copying = loop_.now() - copying;
  figures_.last_round_bytes = memory::total_length(dirty);
  figures_.device_bytes = device_state_.size();
  ++figures_.rounds;
  CO_TRY(co_await devices_->completed());
  fault_point("memory.taken");
  co_return Result<void>{};
}

Task<Result<void>> MemorySave::go_on() {
  if (std::exchange(slowed_, false)) (void)machine_.slow(100);
  Result<void> outcome;
  if (std::exchange(stopped_, false) && !machine_.is_suspended()) {
    const auto gone_on = co_await machine_.command("cont", Json::object());
    if (!gone_on) outcome = failure(gone_on.error());
    if (gone_on) figures_.stopped = machine_.stood();
  }
  if (std::exchange(rested_, false)) co_await machine_.wake();
  co_return outcome;
}

Task<Result<MemorySaveFigures>> MemorySave::finish() {
  const auto guard = co_await ending_.lock();
  if (beginning_ || !is_active())
    co_return failure(ErrorKind::precondition, "the machine's memory is not being saved");
  co_await taking_.drained();
  fault_point("memory.held");
  const auto going_on = co_await go_on();
  fault_point("memory.gone-on");
  auto outcome = std::exchange(taken_, {});
  if (outcome) outcome = going_on;
  if (outcome) outcome = co_await write_out();
  fault_point("memory.complete");
  figures_.bytes = writer_->bytes_written();
  log_info(
      "memory saved in {} rounds, {} bytes; the machine stood for {} us: it took {} to stop, {} "
      "for the devices, {} to scan, {} to copy {} bytes",
      figures_.rounds, figures_.bytes, to_microseconds(figures_.stopped),
      to_microseconds(figures_.stopping), to_microseconds(figures_.saving_devices),
      to_microseconds(figures_.scanning), to_microseconds(figures_.copying),
      figures_.last_round_bytes);
  const MemorySaveFigures figures = figures_;
  if (!outcome) ::unlink((directory_ + "/memory").c_str());
  forget();
  if (!outcome) co_return failure(std::move(outcome).error());
  co_return figures;
}

Task<Result<void>> MemorySave::write_out() {
  CO_TRY(co_await offload(loop_, [this] { return writer_->finish(); }));
  fault_point("memory.written");
  co_return co_await offload(
      loop_, [this] { return write_small_file(directory_ + "/devices", device_state_); });
}

Task<> MemorySave::abandon() {
  stop_copying_ = true;
  while (beginning_) co_await begun_.wait();
  const auto guard = co_await ending_.lock();
  co_await taking_.drained();
  if (!is_active()) co_return;
  const auto going_on = co_await go_on();
  if (!going_on) log_warning("{}", going_on.error().message());
  forget();
}

void MemorySave::forget() {
  scan_.reset();
  writer_.reset();  // takes an image away that is not finished
  devices_.reset();
  device_state_.clear();
  hold_.reset();
}

}  // namespace berth::machine
