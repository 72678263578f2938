// One container while it runs: its sandbox, a microVM or not, what was asked of the agent in it,
// its main process and that one's log. The heart of a container's keeper.
//
//        start              the main process ends, stop, a crash
//   off ───────► booting ─► (held ─►) running ─► ending ─────────► off
//
// On one loop. QEMU and the guest outlive this object: close() lets go of them, and adopt() finds
// them again, in another process, with nothing of the log lost or doubled. A container that has
// ended does not start again by itself.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/uring_loop.h"
#include "container/agent_link.h"
#include "container/container_layout.h"
#include "container/container_log.h"
#include "container/container_store.h"
#include "container/guest_process.h"
#include "container/idle_clock.h"
#include "container/microvm.h"
#include "container/process_sandbox.h"
#include "container/published_ports.h"
#include "machine/vm/memory_save.h"
#include "machine/vm/pause_record.h"

namespace berth::container {

using machine::PageFiles;
using machine::PauseLevel;
using machine::PauseRecord;

struct ContainerOptions {
  std::string name;
  std::string state_dir;
  ContainerRunLayout run;
  std::string memory_dir;
  std::string preload;             // of the memory tracking library; "" for none
  std::vector<Fd> listening = {};  // at the ports of one that was hibernated, in their order
};

class Container {
 public:
  using Report = std::function<void(const char* event, std::string message)>;

  Container(UringLoop& loop, ContainerOptions options, Report report);
  Container(const Container&) = delete;
  Container& operator=(const Container&) = delete;
  ~Container();

  /// Finds what an earlier keeper has left running, and goes on with it; whether there was
  /// anything, which may have ended. Before anything else.
  Task<Result<bool>> adopt();

  struct Start {
    MicroVm::Start machine;  // with a `restore`, of a template
    bool hold = false;       // the main process waits for begin()
    bool wake = false;       // it is hibernated, and goes on: `machine` has its disks alone, and
                             // the memory object of its template where it is a clone
  };
  /// Returns when the main process runs, or, held, when the guest is up. A program that cannot be
  /// run is an error, and the container has then ended, with what a shell would end with.
  Task<Result<void>> start(Start start);
  /// A clone of what gets its name later: all of it is there but for that, and it stands.
  Task<Result<void>> prepare(MicroVm::Start machine, ContainerRecord record);
  /// It is the container of this name from now on, whose record is there and has its id; it runs.
  Task<Result<void>> assume(std::string name);
  bool is_waiting() const { return is_waiting_; }
  /// Of one that waits: it ends, and leaves nothing.
  Task<> discard();
  /// A held main process starts now, with this terminal's size. Of one that runs: its size.
  Task<Result<void>> begin(std::uint16_t rows, std::uint16_t columns);
  /// The stop signal, and SIGKILL when that takes longer; returns when QEMU has ended.
  Task<Result<void>> stop(Duration timeout);
  Task<Result<void>> kill(unsigned signal);
  /// Its memory, sealed, and the state of its devices, for clones of it; with that it has ended.
  /// What its processes have written until then is in its log. Where it fails before its end it
  /// runs on.
  Task<Result<MicroVm::Saved>> become_template();
  /// The same of one that runs on: its memory and the state of its devices are written to files of
  /// these names in `directory`. It stands for the last of its memory alone.
  Task<Result<machine::MemorySaveFigures>> copy_template(std::string directory);
  /// To this level, from a lighter one or none; `precondition` where it is deeper already. Where it
  /// fails it is as it was: it runs on, or stays paused. `no_space` for page files. One that is
  /// hibernated has ended with that, and another keeper's start() has it go on.
  /// One that has been idle for less than `idle_min` is `precondition`, too.
  Task<Result<void>> pause(PauseLevel level, Duration idle_min = Duration::zero());
  /// It goes on from any level, with the right time.
  Task<Result<void>> resume();
  /// Somebody wants something of it: it is resumed if it is paused, or about to be.
  Task<Result<void>> awaken();
  /// Or about to be.
  bool is_paused() const { return pauses_ > 0 || pause_level() != PauseLevel::none; }
  machine::Json info() const;

  // --- Since when nobody has wanted anything of it (container_idle.cc).

  /// Somebody has, just now.
  void touch();
  /// While one of these is there, it is in use.
  class Use {
   public:
    explicit Use(Container& container);
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use();

   private:
    Container& container_;
  };
  /// Zero while it is in use, or a process beside its main one is there.
  Duration idle() const;

  /// Lets go of QEMU, which runs on.
  Task<> close();

  enum class Phase : std::uint8_t { off, booting, held, running, ending };
  Phase phase() const { return phase_; }
  bool is_on() const { return phase_ != Phase::off; }
  /// Waits for the next change of phase, and for more of the log.
  auto changed() { return changed_.wait(); }
  /// Has those who wait for it look again.
  void wake_up() { changed_.notify_all(); }

  // --- For those who are attached.

  const ContainerRecord& record() const { return record_; }
  std::string log_path() const { return store_.log(options_.name); }
  /// What was written since then is of this run (log_time()).
  const std::string& log_begins_at() const { return log_begins_at_; }
  /// Null before it has started, and after a keeper's death until the guest is found again.
  GuestProcess* main() { return main_.get(); }
  /// How the main process ended, once all that it wrote is in the log; or why that is not known.
  struct End {
    ProcessEnd end;
    std::string error;  // "" where the end is true
  };
  const std::optional<End>& end() const { return end_; }
  /// Another process, started. `shell_status` is set where it cannot be.
  Task<Result<std::shared_ptr<GuestProcess>>> execute(ProcessSpecification specification,
                                                      unsigned& shell_status);
  /// Ended or not; it is forgotten in the guest when it has.
  void release(std::shared_ptr<GuestProcess> process);
  /// The same; returns when that is done.
  Task<> dismiss(std::shared_ptr<GuestProcess> process) { return drop(std::move(process)); }
  /// `precondition` while the guest cannot be asked.
  Result<std::shared_ptr<AgentLink>> link();
  /// For a stream that is no process's.
  std::uint32_t next_stream() { return ports_->next_stream(); }
  std::vector<std::string> logs() const { return machine_->logs(); }

 private:
  class Saved;
  Result<void> load_record();
  void make_machine();
  Result<void> check_start(const Sandbox::Start& start) const;
  Result<MicroVm*> microvm() const;
  Result<void> check_level(PauseLevel level) const;
  Task<Result<void>> trim_processes();
  Result<void> begin_run();
  Task<Result<void>> prepare_clone(MicroVm::Start machine);
  Task<Result<void>> go_on_as_clone();
  Task<Result<bool>> discard_what_waited();
  void open_ports();
  Result<void> save_launch() const;
  Result<std::optional<Id128>> load_launch();
  Task<Result<void>> connect(Duration patience, bool in_step = false);
  Task<Result<void>> prepare_guest();
  Task<> settle();
  Task<Result<void>> rehearse();
  Task<Result<std::uint64_t>> stand_ins_ended();
  Task<> ask_stand_in(std::uint64_t port);
  Task<Result<void>> become_clone(bool may_be_done);
  Task<Result<void>> ask_to_become_clone();
  Task<Result<bool>> is_workload_frozen();
  Task<Result<void>> rest_workload();
  void add_identity(agent::FieldWriter& request) const;
  void add_network(agent::FieldWriter& request) const;
  Task<Result<void>> mount_volumes();
  ProcessSpecification main_specification() const;
  Task<Result<void>> start_main();
  Task<Result<void>> find_processes();
  Task<> go_on();
  Task<> hold_on();
  Task<> watch_main();
  Task<> watch_machine();
  Task<> power_off();
  Task<bool> is_off_within(Duration patience);
  Task<> drop(std::shared_ptr<GuestProcess> process);
  // container_hibernation.cc
  Task<Result<void>> go_on_hibernated(MicroVm::Start machine);
  Task<Result<void>> load_hibernated(MicroVm::Start machine);
  Task<Result<void>> run_again();
  Task<Result<void>> save_everything(Instant begun);
  Task<Result<void>> leave_saved();
  Task<> leave_saved_pages();
  Task<> end_saved();
  // container_pause.cc
  PauseLevel pause_level() const;
  Task<Result<void>> pause_in_turn(PauseLevel level, Duration idle_min);
  Task<Result<void>> go_down(PauseLevel level, Instant begun);
  Task<> set_guest_clock();
  Task<Result<void>> go_up();
  Task<Result<void>> stand_still();
  bool is_quiet() const;
  Task<Result<void>> await_quiet();
  Task<> bring_forward();
  void note_answer();
  Task<> note_working_set();
  PageFiles page_files() const;
  void save_pause() const;
  Task<> adopt_pause();
  void forget_pause();
  void awaken_soon();
  Task<> awaken_for_port();
  Task<Result<void>> bring_memory_back();
  // container_idle.cc
  Task<> watch_idle();
  std::optional<Duration> cpu_time() const;
  void add_idle(machine::Json& info) const;

  void drain_main();
  bool drain(agent::IncomingStream* in, LogStream stream);
  void set_phase(Phase phase);
  void set_end(ProcessEnd end, std::string error);
  void set_failure(const Error& error);
  void finish(const std::string& last_words);
  void on_event(agent::EventKind kind, std::uint32_t channel, const agent::Fields& fields);

  UringLoop& loop_;
  ContainerOptions options_;
  const Report report_;
  const ContainerStore store_;
  Gate tasks_;
  Event changed_;
  AsyncMutex changing_;
  Phase phase_ = Phase::off;
  ContainerRecord record_;
  ContainerState state_;
  Id128 memory_id_;
  std::string started_at_;
  std::string log_begins_at_;
  std::string image_;  // path of what its root is
  std::unique_ptr<Sandbox> machine_;
  MicroVm* microvm_ = nullptr;                   // it, where it is one
  ProcessSandbox* processes_in_host_ = nullptr;  // likewise
  std::optional<ContainerLog> log_;
  std::unique_ptr<PublishedPorts> ports_;
  std::unique_ptr<berth::Stream> dialled_;  // for the next link
  std::shared_ptr<AgentLink> link_;
  std::shared_ptr<GuestProcess> main_;
  std::map<std::uint32_t, std::shared_ptr<GuestProcess>> processes_;
  std::uint32_t last_process_ = 1;
  std::optional<End> end_;
  PauseRecord pause_;
  std::vector<memory::PageRegion> own_pages_;  // of QEMU's: it came to them when it last went on
  IdleClock idle_;
  std::size_t uses_ = 0;
  std::size_t pauses_ = 0;       // asked for, and not done
  std::string template_memory_;  // of a clone: the memory object of its template
  bool is_clone_ = false;        // of a template, and not a machine of its own so far
  bool is_template_ = false;     // and ends with that
  bool is_saving_ = false;       // and goes on when that is done
  bool is_waiting_ = false;      // for a name
  bool is_hibernated_ = false;   // QEMU may go: the rest is in files
  bool has_answered_ = false;    // since it was resumed
  bool is_waking_ = false;       // it was hibernated, and is about to run
  bool is_awaking_ = false;
  bool log_fails_ = false;
  bool kill_asked_ = false;
  bool closing_ = false;
};

}  // namespace berth::container
