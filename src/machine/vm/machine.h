// One machine while it runs: QEMU started, watched, commanded, started again, ended. The heart of a
// machine's keeper.
//
//        start            guest powers off, stop, crash for good
//   off ───────► on ─────────────────────────────────────────────► off
//                │ ▲
//                └─┘  crash with on_crash = "restart"; a keeper's death does not count
//
// On one loop. QEMU outlives this object: close() lets go of it, and adopt() finds it again, in
// another process. What it was started with is in RUN_DIR/machines/NAME/launch.json, what it is
// meant to be doing in its state.json. Requests that contradict its state are `precondition`.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/process_watch.h"
#include "async/uring_loop.h"
#include "machine/layout.h"
#include "machine/vm/control_group.h"
#include "machine/vm/guest_agent.h"
#include "machine/vm/machine_store.h"
#include "machine/vm/pause_record.h"
#include "machine/vm/qemu_process.h"
#include "machine/vm/qmp_client.h"
#include "machine/vm/saved_guest.h"

namespace berth::machine {

/// A machine that does not start, but goes on from where it was saved.
struct MachineRestore {
  std::string memory;       // a memory image; "" for what is in
  std::string pages = {};   // a page file: mapped, and read as the guest comes to it
  std::string devices;      // the device state that belongs to it
  std::string qemu;         // the QEMU that it is of
  std::string accelerator;  // likewise
};

struct MachineStart {
  std::vector<AttachedDisk> disks;
  std::optional<MachineRestore> restore;
  bool suspended = false;  // does not run until resume()
  bool wake = false;       // it is hibernated, and goes on
};

class Machine final : public SavedGuest {
 public:
  struct Options {
    std::string name;
    StateLayout state;
    RunLayout run;
    std::string memory_dir;  // where memory objects are
    std::string preload;     // of the memory tracking library; "" for none
  };
  /// A thing that happened, for the daemon and for people. See docs/formats/keeper-control.md.
  using Report = std::function<void(const char* event, std::string message)>;

  Machine(UringLoop& loop, Options options, Report report);
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() override;

  /// Finds the machine's QEMU if it runs, and has it do what it is meant to do; whether an earlier
  /// keeper had started one, which may have ended. Before anything else.
  Task<Result<bool>> adopt();

  /// Returns when QEMU runs and answers. Nothing is left behind if it does not. One that is
  /// hibernated stays so where it cannot go on.
  Task<Result<void>> start(MachineStart start);
  /// Asks the guest to shut down, and ends QEMU when that takes longer; at once with a time-out of
  /// 0. Returns when it has ended.
  Task<Result<void>> stop(Duration timeout);
  /// To this level, from a lighter one or none; `precondition` where it is deeper already. Where it
  /// fails it is as it was: it runs on, or stays suspended. `no_space` for page files;
  /// `unsupported` for levels below `frozen` where memory is not tracked. One that is hibernated
  /// has ended with that.
  Task<Result<void>> suspend(PauseLevel level);
  /// It goes on from any level, as soon as it can; its guest's clock is set when the agent answers.
  Task<Result<void>> resume();
  /// A disk comes or goes while the machine runs. Detaching asks the guest, which may refuse or
  /// take its time (timed_out).
  Task<Result<void>> attach(AttachedDisk disk);
  Task<Result<void>> detach(std::string node);
  /// 0 for no limit. `precondition` where QEMU would not live with it.
  Result<void> limit(const LimitSpecification& limits);
  /// What to do when QEMU or the guest's kernel dies, from now on.
  void set_on_crash(MachineSpecification::OnCrash on_crash) {
    record_.specification.on_crash = on_crash;
  }
  /// Addresses come from the guest, which may take its time.
  Task<Json> info(bool with_addresses);

  /// Lets go of QEMU, which runs on.
  Task<> close();

  bool is_on() const { return phase_ != Phase::off; }
  /// Waits for the next change of state.
  auto changed() { return changed_.wait(); }

  // --- For what works on the running machine: freezing, saving.

  /// `precondition` unless QEMU runs and answers.
  Result<QmpClient*> monitor();
  Result<void> check_runs() override {
    TRY(monitor());
    return {};
  }
  GuestAgent& agent() { return *agent_; }
  /// Whether there is one in the guest now, as far as that can be known without asking it.
  Task<bool> has_agent();
  /// What is left to the guest of its CPU time, of a hundred; 100 gives it back what it may have.
  Result<void> slow(unsigned percent) override;
  /// Runs a command of QMP.
  Task<Result<Json>> command(std::string name, Json arguments) override;
  pid_t pid() const override { return process_ ? process_->pid : 0; }
  std::string memory_file() const override { return memory_file_; }
  std::uint64_t memory_size() const override { return record_.specification.memory; }
  const MachineRecord& record() const { return record_; }
  /// The data files of its volumes.
  std::vector<std::string> disk_files() const override;
  /// Files that QEMU appends to.
  std::vector<std::string> logs() const;
  bool tracks_memory() const override { return !options_.preload.empty(); }
  std::string agent_socket() const;
  std::string qemu_directory() const override;
  uid_t qemu_user() const override { return record_.uid; }
  std::string run_directory() const { return options_.run.machine(options_.name); }
  /// While it lives, nothing but its owner stops or continues the machine.
  Task<AsyncMutex::Guard> hold() override { co_return co_await changing_.lock(); }
  bool is_suspended() const override { return wish_.suspended; }
  /// All of it is in the memory object, and tracked, also of one that was parked; one that is
  /// suspended is `frozen` then. `no_space` in the memory directory: it stays as it was.
  Task<Result<void>> bring_memory_back() override;
  /// How long its virtual CPUs stood when they stood last: between QEMU's events STOP and RESUME.
  Duration stood() const override { return stood_; }

 private:
  enum class Phase : std::uint8_t { off, starting, on };

  Task<Result<void>> launch();
  Task<Result<void>> try_launch();
  Result<void> prepare_directory();
  Result<void> prepare_boot_files(QemuPlaces& places);
  Task<Result<void>> connect_monitor(Duration patience);
  Task<> watch_process(std::uint64_t generation);
  Task<> after_end();
  Task<> reconnect_monitor();
  Task<> retry_io();
  Task<> guest_went_off(std::string reason);
  Task<> guest_panicked();
  Task<Result<void>> go_on();
  Task<Result<void>> end_now();
  Task<Result<std::string>> guest_status();
  Task<std::string> shown_status();
  void on_event(const std::string& event, const Json& data);
  void expect_end(std::string reason);
  void clean_up();
  bool may_restart();
  // machine_pause.cc
  PauseLevel pause_level() const;
  memory::GuestProcess memory_process() const;
  PageFiles page_files() const;
  Task<Result<void>> go_down(PauseLevel level, Instant begun);
  Task<Result<void>> await_quiet();
  void note_suspended(PauseLevel level);
  Task<> bring_forward();
  Task<Result<void>> go_up();
  void went_on(bool was_deep);
  Task<> set_guest_clock();
  Task<> note_working_set();
  Task<Result<bool>> bring_piece_back();
  std::string memory_channel() const;
  std::string pause_file() const;
  void save_pause() const;
  Task<> adopt_pause();
  void forget_pause();
  // machine_hibernation.cc
  std::string directory() const { return options_.state.machine(options_.name); }
  const char* accelerator() const { return kvm_ ? "kvm" : "tcg"; }
  Task<Result<void>> save_everything(Instant begun);
  Task<Result<void>> leave_saved();
  Task<> leave_saved_pages();
  Task<Result<void>> prepare_wake();
  Result<void> check_restore(const MachineRestore& restore) const;
  Task<Result<void>> map_pages();
  Task<Result<void>> run_again();
  Task<> end_saved();

  Result<void> save_launch() const;
  Result<bool> load_launch();
  void remember();
  std::string log_path() const;
  std::string group_name() const;

  UringLoop& loop_;
  const Options options_;
  const Report report_;
  const MachineStore store_;
  Gate tasks_;
  ProcessWatch process_watch_;
  Event changed_;
  AsyncMutex changing_;
  Phase phase_ = Phase::off;
  MachineRecord record_;
  MachineState wish_;
  MachineStart start_;
  PauseRecord pause_;
  std::vector<memory::PageRegion> own_pages_;  // of QEMU's: it came to them when it last went on
  Id128 memory_id_;
  std::string memory_file_;
  Instant stands_since_{};
  Duration stood_{};
  std::optional<QemuProcess> process_;
  std::uint64_t generation_ = 0;
  std::unique_ptr<QmpClient> monitor_;
  std::unique_ptr<GuestAgent> agent_;
  ControlGroup group_;
  bool kvm_ = false;
  std::string started_at_;
  std::string expected_end_;            // why QEMU's end will be no crash; "" while it would be one
  std::vector<std::string> unplugged_;  // devices that the guest has given back
  std::deque<Instant> restarts_;
  bool guest_shut_down_ = false;
  std::string qemu_version_;
  bool retrying_io_ = false;
  bool closing_ = false;
};

}  // namespace berth::machine
