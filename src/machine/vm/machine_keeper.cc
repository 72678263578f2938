#include "machine/vm/machine_keeper.h"

#include <memory>
#include <utility>

#include "machine/layout.h"
#include "machine/vm/guest_keeper.h"
#include "machine/vm/machine.h"
#include "machine/vm/machine_methods.h"

namespace berth::machine {
namespace {

class MachineKeeper final : public GuestKeeper {
 public:
  MachineKeeper(UringLoop& loop, Signals& signals, const MachineKeeperOptions& options)
      : GuestKeeper(
            loop, signals,
            {.noun = "machine",
             .name = options.machine,
             .directory = RunLayout{options.run_dir}.machine(options.machine),
             .lock_file = RunLayout{options.run_dir}.machine_lock_file(options.machine),
             .control_socket = RunLayout{options.run_dir}.machine_control_socket(options.machine)}),
        machine_(
            loop,
            {.name = options.machine,
             .state = {options.state_dir},
             .run = {options.run_dir},
             .memory_dir = options.memory_dir,
             .preload = options.preload},
            [this](const char* event, std::string message) { report(event, std::move(message)); }),
        quiescence_(loop, machine_, options.program),
        save_(loop, machine_),
        methods_(loop, server(), machine_, quiescence_, save_) {}

 private:
  Task<Result<bool>> adopt() override { return machine_.adopt(); }
  bool is_on() const override { return machine_.is_on(); }
  Task<> guest_changed() override { co_await machine_.changed(); }
  void open() override {
    methods_.open();
    tasks().spawn(quiescence_.recover());
  }
  std::vector<std::string> logs() const override { return machine_.logs(); }
  Task<> close_clients() override { return methods_.close(); }
  Task<> close_guest() override { return machine_.close(); }

  Machine machine_;
  Quiescence quiescence_;
  MemorySave save_;
  MachineMethods methods_;
};

}  // namespace

int run_machine_keeper(const MachineKeeperOptions& options) {
  return run_guest_keeper("machine", options.machine, [&](UringLoop& loop, Signals& signals) {
    return std::make_unique<MachineKeeper>(loop, signals, options);
  });
}

}  // namespace berth::machine
