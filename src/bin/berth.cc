// berth: one program that is a command line, the daemon of a host, or the keeper of a volume.
// Wiring only.

#include "control/command_line.h"
#include "control/daemon.h"
#include "machine/keeper.h"

namespace {

int run_keeper(const berth::control::KeeperArguments& arguments) {
  return berth::machine::run_keeper({.state_dir = arguments.state_dir,
                                     .run_dir = arguments.run_dir,
                                     .id = arguments.id,
                                     .volume = arguments.volume,
                                     .listen_fds = arguments.listen_fds});
}

}  // namespace

int main(int argc, char** argv) {
  // What the process is to be is on its command line.
  return berth::control::run_command_line(
      argc, argv,
      {
          .daemon = berth::control::run_daemon,  // the catalogue and the API
          .keeper = run_keeper,                  // one volume, open and served
      });
}
