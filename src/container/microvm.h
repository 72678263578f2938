// A container's microVM while it runs: QEMU started, watched, commanded, found again, ended. What
// is in the guest is not its matter (container.h).
//
// On one loop. QEMU outlives this object: close() lets go of it, and adopt() finds it again in
// another process. A microVM never starts again by itself.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/process_watch.h"
#include "async/uring_loop.h"
#include "base/ids.h"
#include "container/container_layout.h"
#include "container/microvm_command.h"
#include "container/sandbox.h"
#include "machine/vm/control_group.h"
#include "machine/vm/qemu_monitor.h"
#include "machine/vm/qemu_process.h"
#include "machine/vm/qmp_client.h"
#include "memory/guest_memory.h"

namespace berth::container {

class MicroVm final : public Sandbox, public machine::QemuMonitor {
 public:
  struct Options {
    std::string name;
    ContainerRunLayout run;
    std::string memory_dir;  // where memory objects are
    std::string preload;     // of the memory tracking library; "" for none
    Id128 id;
    std::uint32_t uid = 0;  // that QEMU runs as where the keeper is root
    unsigned cpus = 1;      // virtual ones
    double cpu_limit = 0;   // of host CPU time; 0 for none
    std::uint64_t memory = 0;
    bool network = true;
    bool has_overlay = false;
  };
  /// A disk failed, and the guest stands still until it is back; and the like, for people.
  using Report = std::function<void(const char* event, std::string message)>;

  MicroVm(UringLoop& loop, Options options, Report report);
  MicroVm(const MicroVm&) = delete;
  MicroVm& operator=(const MicroVm&) = delete;
  ~MicroVm() override;

  /// Returns when QEMU runs and answers. Nothing is left behind if it does not. `memory` is the id
  /// of its memory object, and of this QEMU: kept by the caller, for adopt().
  Task<Result<void>> start(Start start, Id128 memory) override;
  /// Finds the QEMU of an earlier keeper; false if there is none, or it had not all that it needs
  /// to run, and what it has left is gone. `memory` as for start(); of a clone, `template_memory`,
  /// and whether it `may_stand`: one that has never run so far is set going.
  Task<Result<bool>> adopt(Id128 memory, std::string template_memory, bool may_stand) override;

  /// It is that of this container from now on.
  void rename(std::string name) { options_.name = std::move(name); }

  bool is_on() const override { return process_.has_value(); }
  pid_t pid() const override { return process_ ? process_->pid : 0; }
  const std::string& qemu_version() const { return qemu_version_; }
  const char* accelerator() const { return kvm_ ? "kvm" : "tcg"; }
  /// How long QEMU has taken for that; nothing of one that has booted, or was adopted.
  std::optional<Duration> devices_loaded_in() const { return devices_loaded_in_; }
  std::string agent_socket() const override;
  /// Of a QEMU that an older Berth has started nobody serves the channel.
  memory::GuestProcess memory_process() const;
  /// Files that QEMU appends to.
  std::vector<std::string> logs() const override;
  machine::ControlGroupUsage usage() const override { return group_.usage(); }

  /// Ends QEMU by force. Returns when it has ended.
  Task<> end() override;
  /// Until QEMU has ended; its last words, "" where it has none.
  Task<std::string> ended() override;
  const std::string& last_words() const override { return last_words_; }

  /// What is left to it of its CPU time, of a hundred; 100 gives it back what it may have.
  Result<void> slow(unsigned percent);
  /// Virtual CPUs stand, and go on.
  Task<Result<void>> freeze() override;
  Task<Result<void>> thaw() override;
  bool is_frozen() const override { return frozen_; }

  Task<Result<machine::Json>> command(std::string name, machine::Json arguments) override;
  std::string qemu_directory() const override {
    return options_.run.qemu_directory(memory_id_.to_string());
  }
  uid_t qemu_user() const override { return options_.uid; }

  /// Its memory object and the state of its devices, of a guest in which nothing runs any more: it
  /// stands, and QEMU ends. The memory object, sealed, is the caller's from now on. Of a clone
  /// `unsupported`.
  struct Saved {
    std::string memory;  // path
    std::string devices;
  };
  Task<Result<Saved>> become_template();
  /// The state of the devices of one that is frozen, and stays so.
  Task<Result<std::string>> save_devices();

  /// Lets go of QEMU, which runs on.
  Task<> close() override;

 private:
  Task<Result<void>> launch(Start start);
  Task<Result<void>> go_on_from(Restore saved);
  Result<void> prepare_memory(const Start& start, gid_t gid);
  Result<std::vector<std::string>> preload_environment(const Start& start, gid_t gid) const;
  Result<void> prepare_directory();
  Task<Result<void>> connect_monitor(Duration patience);
  Task<> watch_process();
  Task<> reconnect_monitor();
  Task<> retry_io();
  std::string preload_path() const;
  std::string kernel_copy() const;
  std::string initrd_copy() const;
  std::string memory_channel() const;
  void on_event(const std::string& event, const machine::Json& data);
  Task<> clean_up();
  std::string group_name() const;

  UringLoop& loop_;
  Options options_;
  const Report report_;
  const bool kvm_;
  Gate tasks_;
  ProcessWatch process_watch_;
  Event changed_;
  Id128 memory_id_;
  std::string memory_file_;
  std::optional<machine::QemuProcess> process_;
  std::unique_ptr<machine::QmpClient> monitor_;
  machine::ControlGroup group_;
  std::string last_words_;
  std::optional<Duration> devices_loaded_in_;
  std::string qemu_version_;
  bool is_clone_ = false;      // its memory object is a template's
  bool keeps_memory_ = false;  // the memory object is somebody else's when QEMU has ended
  bool frozen_ = false;
  bool retrying_io_ = false;
  bool closing_ = false;
};

}  // namespace berth::container
