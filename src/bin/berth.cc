// berth: one program that is a command line, the daemon of a host, or the keeper of a volume.
// Wiring only.

#include "container/container_keeper.h"
#include "control/command_line.h"
#include "control/daemon.h"
#include "machine/keeper.h"
#include "machine/vm/freeze_watchdog.h"
#include "machine/vm/machine_keeper.h"

namespace {

int run_keeper(const berth::control::KeeperArguments& arguments) {
  return berth::machine::run_keeper({.state_dir = arguments.state_dir,
                                     .run_dir = arguments.run_dir,
                                     .id = arguments.id,
                                     .volume = arguments.volume,
                                     .listen_fds = arguments.listen_fds});
}

int run_machine_keeper(const berth::control::KeeperArguments& arguments) {
  return berth::machine::run_machine_keeper({.state_dir = arguments.state_dir,
                                             .run_dir = arguments.run_dir,
                                             .memory_dir = arguments.memory_dir,
                                             .machine = arguments.machine,
                                             .program = "/proc/self/exe",
                                             .preload = arguments.preload});
}

int run_container_keeper(const berth::control::KeeperArguments& arguments) {
  return berth::container::run_container_keeper({.state_dir = arguments.state_dir,
                                                 .run_dir = arguments.run_dir,
                                                 .memory_dir = arguments.memory_dir,
                                                 .container = arguments.container,
                                                 .preload = arguments.preload,
                                                 .listen_fds = arguments.listen_fds});
}

int run_watchdog(const berth::control::WatchdogArguments& arguments) {
  return berth::machine::run_freeze_watchdog(arguments.agent_socket, arguments.fd, arguments.limit);
}

}  // namespace

int main(int argc, char** argv) {
  // What the process is to be is on its command line.
  return berth::control::run_command_line(
      argc, argv,
      {
          .daemon = berth::control::run_daemon,      // the catalogue and the API
          .keeper = run_keeper,                      // one volume, open and served
          .machine_keeper = run_machine_keeper,      // one machine that runs
          .container_keeper = run_container_keeper,  // one container that runs
          .watchdog = run_watchdog,                  // thaws a guest if its keeper does not
      });
}
