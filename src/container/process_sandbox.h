// A container's processes in the host's kernel: namespaces, limits and a filter by runc, a root of
// their own (process_root.h), and our agent as their PID 1, which listens where QEMU would for that
// of a microVM. With `--net user` a slirp4netns beside it is its way out.
//
// What it has left when it has ended is a directory, control groups and runc's record of it; mounts
// and network go with its last process. On one loop; needs root.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/process_watch.h"
#include "async/uring_loop.h"
#include "base/fd.h"
#include "container/container_layout.h"
#include "container/process_bundle.h"
#include "container/sandbox.h"
#include "machine/vm/control_group.h"
#include "machine/vm/qemu_process.h"

namespace berth::container {

class ProcessSandbox final : public Sandbox {
 public:
  struct Options {
    std::string name;
    ContainerRunLayout run;
    Id128 id;
    std::uint32_t uid = 0;  // which range of users is its own
    std::string hostname;
    double cpus = 1;
    std::uint64_t memory = 0;
    bool network = true;
  };

  ProcessSandbox(UringLoop& loop, Options options);
  ProcessSandbox(const ProcessSandbox&) = delete;
  ProcessSandbox& operator=(const ProcessSandbox&) = delete;
  ~ProcessSandbox() override;

  Task<Result<void>> start(Start start, Id128 run) override;
  Task<Result<bool>> adopt(Id128 run, std::string template_memory, bool may_stand) override;
  bool is_on() const override { return process_.has_value(); }
  pid_t pid() const override { return process_ ? process_->pid : 0; }
  std::string agent_socket() const override;
  std::vector<std::string> logs() const override { return {options_.run.qemu_log(options_.name)}; }
  machine::ControlGroupUsage usage() const override { return group_.usage(); }
  Task<> end() override;
  Task<std::string> ended() override;
  const std::string& last_words() const override { return last_words_; }
  Task<Result<void>> freeze() override;
  Task<Result<void>> thaw() override;
  bool is_frozen() const override { return frozen_; }
  Task<> close() override;

  struct Trimmed {
    machine::ControlGroupMemory before;
    machine::ControlGroupMemory after;
  };
  /// Of one that is frozen: what memory it has is swapped out. `precondition` on a host without
  /// swap.
  Task<Result<Trimmed>> trim();

 private:
  std::string directory() const;
  std::string group_name() const;
  Task<Result<void>> launch(Start start);
  Result<void> prepare_directory();
  Result<void> write_bundle(const Start& start);
  Result<void> start_network(const Fd& ends_with);
  Task<Result<void>> runtime(std::vector<std::string> arguments);
  void find_last_words();
  Task<> watch_process();
  Task<> end_network();
  Task<> clean_up();

  UringLoop& loop_;
  const Options options_;
  Gate tasks_;
  ProcessWatch process_watch_;
  Event changed_;
  Id128 run_;
  std::uint32_t first_user_ = 0;
  std::optional<machine::QemuProcess> process_;
  std::optional<machine::QemuProcess> network_;
  machine::ControlGroup group_;
  std::string last_words_;
  bool frozen_ = false;
  bool closing_ = false;
};

}  // namespace berth::container
